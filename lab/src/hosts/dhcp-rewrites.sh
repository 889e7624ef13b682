# What DHCP clients without any manager of names do at each renewal: they replace /etc/resolv.conf, by rename, here every 3 seconds.
case $1 in
start)
    # Copied at the first start only: later p2pvm's own lines may be in the file.
    [ -e /var/lib/resolv.conf.before ] || cp -P /etc/resolv.conf /var/lib/resolv.conf.before
    server=$(awk '$1 == "nameserver" { print $2; exit }' /var/lib/resolv.conf.before)
    # It waits by 'read': a process 'sleep' would be in one list of the processes and not in the next.
    cat >/var/lib/renew <<RENEW
[ -p /run/renew ] || mkfifo /run/renew
exec 3<>/run/renew
while :; do
    printf 'search example.org\nnameserver %s\n' "$server" >/etc/resolv.conf.dhcp
    mv /etc/resolv.conf.dhcp /etc/resolv.conf
    read -r -t 3 <&3
done
RENEW
    setsid bash /var/lib/renew </dev/null >/dev/null 2>&1 &
    echo $! >/run/udhcpc.test.pid ;;
stop)
    kill "$(cat /run/udhcpc.test.pid)"
    rm -f /etc/resolv.conf
    cp -P /var/lib/resolv.conf.before /etc/resolv.conf ;;
esac
