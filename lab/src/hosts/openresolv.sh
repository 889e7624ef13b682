# openresolv, unpacked beside the packages: 'resolvconf -a' with the previous server, as a DHCP client does. It writes /etc/resolv.conf.
case $1 in
start)
    # Copied at the first start only: later p2pvm's own lines may be in the file.
    [ -e /var/lib/resolv.conf.before ] || cp -P /etc/resolv.conf /var/lib/resolv.conf.before
    [ -e /usr/lib/resolvconf ] || cp -r --remove-destination /opt/openresolv/. /
    resolvconf -a eth0.dhcp </var/lib/resolv.conf.before
    rm -f /etc/resolv.conf.bak ;;
stop)
    resolvconf -d eth0.dhcp
    rm -f /etc/resolv.conf.bak
    cp -P /var/lib/resolv.conf.before /etc/resolv.conf ;;
esac
