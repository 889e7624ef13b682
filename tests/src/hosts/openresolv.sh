# openresolv, from beside: 'resolvconf -a' with the server there was, as a DHCP client does. It makes /etc/resolv.conf.
case $1 in
start)
    cp -P /etc/resolv.conf /var/lib/resolv.conf.before
    [ -e /usr/sbin/resolvconf ] || cp -r /opt/openresolv/. /
    resolvconf -a eth0.dhcp </var/lib/resolv.conf.before ;;
stop)
    resolvconf -d eth0.dhcp
    cp -P /var/lib/resolv.conf.before /etc/resolv.conf ;;
esac
