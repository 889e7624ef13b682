# A firewall that a person wrote with iptables-legacy: answers, pings and p2pvm's own ports come in, nothing is forwarded.
t=iptables-legacy
case $1 in
start)
    $t -P FORWARD DROP
    $t -A INPUT -i lo -j ACCEPT
    $t -A INPUT -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT
    $t -A INPUT -p udp -m multiport --dports 4001,4002 -j ACCEPT
    $t -A INPUT -p tcp --dport 4001 -j ACCEPT
    $t -A INPUT -p icmp -j ACCEPT
    $t -P INPUT DROP ;;
stop)
    $t -P INPUT ACCEPT
    $t -P FORWARD ACCEPT
    $t -F
    $t -X ;;
esac
