# A firewall that a person wrote for nft itself, as in /etc/nftables.conf: answers, pings and p2pvm's own ports come in, nothing is forwarded.
case $1 in
start)
    nft -f - <<'RULES'
table inet filter {
    chain input {
        type filter hook input priority filter; policy drop;
        iif lo accept
        ct state established,related accept
        udp dport { 4001, 4002 } accept
        tcp dport 4001 accept
        meta l4proto { icmp, ipv6-icmp } accept
    }
    chain forward {
        type filter hook forward priority filter; policy drop;
    }
}
RULES
    ;;
stop) nft delete table inet filter ;;
esac
