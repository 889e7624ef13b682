# libvirt's daemon with its network "default": virbr0, 192.168.122.0/24, dnsmasq, address translation.
case $1 in
start)
    [ -S /run/dbus/system_bus_socket ] || dbus-daemon --system --fork
    setsid virtlogd -d
    setsid libvirtd -d -p /run/libvirtd.test.pid
    for _ in $(seq 100); do
        virsh -c network:///system net-list >/dev/null 2>&1 && break
        sleep 0.1
    done
    virsh -q -c network:///system net-start default >/dev/null ;;
stop)
    virsh -q -c network:///system net-destroy default >/dev/null
    for file in /run/libvirtd.test.pid /run/virtlogd.pid /run/dbus/pid; do
        pid=$(cat "$file")
        kill "$pid"
        while [ -d "/proc/$pid" ]; do sleep 0.05; done
    done
    rm -f /run/dbus/pid /run/dbus/system_bus_socket ;;
esac
