# A firewall that a person wrote with iptables and ip6tables (legacy or nft, by the name in $0): answers, pings and p2pvm's own ports
# come in, nothing is forwarded.
four="$0 -w 5" six="ip6${0#ip} -w 5"
case $1 in
start)
    for t in "$four" "$six"; do
        $t -P FORWARD DROP
        $t -A INPUT -i lo -j ACCEPT
        $t -A INPUT -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT
        $t -A INPUT -p udp -m multiport --dports 4001,4002 -j ACCEPT
        $t -A INPUT -p tcp --dport 4001 -j ACCEPT
    done
    $four -A INPUT -p icmp -j ACCEPT
    $six -A INPUT -p ipv6-icmp -j ACCEPT
    for t in "$four" "$six"; do $t -P INPUT DROP; done ;;
stop)
    for t in "$four" "$six"; do
        $t -P INPUT ACCEPT
        $t -P FORWARD ACCEPT
        $t -F
        $t -X
    done ;;
esac
