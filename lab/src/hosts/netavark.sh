# Podman's netavark with podman's default network, 10.88.0.0/16 on podman0, and one container on it.
cat >/run/netavark.json <<'CONFIG'
{
  "container_id": "6f8f0e4b1d6b4c5f", "container_name": "box",
  "networks": { "podman": { "interface_name": "eth0", "static_ips": ["10.88.0.2"] } },
  "network_info": { "podman": {
    "name": "podman", "id": "2f259bab93aaaaa2542ba43ef33eb990d0999ee1b9924b557b7be53c0b7a1bb9", "driver": "bridge",
    "network_interface": "podman0", "subnets": [{ "subnet": "10.88.0.0/16", "gateway": "10.88.0.1" }],
    "ipv6_enabled": false, "internal": false, "dns_enabled": false, "ipam_options": { "driver": "host-local" }
  } }
}
CONFIG
netavark() { /usr/lib/podman/netavark --config /run/netavark "$@" /run/netns/box </run/netavark.json >/dev/null; }
mkdir -p /run/netavark
case $1 in
start)
    ip netns add box
    netavark setup
    # Otherwise random at each start, which would look like a change by p2pvm.
    ip link set veth0 address 0a:58:0a:58:00:02 ;;
stop)
    netavark teardown
    ip netns del box ;;
esac
