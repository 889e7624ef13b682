# systemd-resolved with its stub, by the link that Debian makes, and its previous server as its own.
case $1 in
start)
    [ -S /run/dbus/system_bus_socket ] || dbus-daemon --system --fork
    # Copied at the first start only: later p2pvm's own lines may be in the file.
    [ -e /var/lib/resolv.conf.before ] || cp -P /etc/resolv.conf /var/lib/resolv.conf.before
    mkdir -p /etc/systemd/resolved.conf.d
    awk '$1 == "nameserver" { print "[Resolve]\nDNS=" $2 "\nDNSSEC=no" }' /var/lib/resolv.conf.before >/etc/systemd/resolved.conf.d/test.conf
    mkdir -p /run/systemd/resolve
    chown systemd-resolve: /run/systemd/resolve
    setsid /usr/lib/systemd/systemd-resolved </dev/null >/var/log/resolved.log 2>&1 &
    echo $! >/run/resolved.test.pid
    for _ in $(seq 100); do
        resolvectl status >/dev/null 2>&1 && break
        sleep 0.1
    done
    ln -sf ../run/systemd/resolve/stub-resolv.conf /etc/resolv.conf ;;
stop)
    pid=$(cat /run/resolved.test.pid)
    kill "$pid"
    while [ -d "/proc/$pid" ]; do sleep 0.05; done
    rm -f /etc/resolv.conf /etc/systemd/resolved.conf.d/test.conf
    cp -P /var/lib/resolv.conf.before /etc/resolv.conf
    kill "$(cat /run/dbus/pid)"
    rm -f /run/dbus/pid /run/dbus/system_bus_socket ;;
esac
