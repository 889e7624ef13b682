# Docker's own daemon, with its state below the host's root.
case $1 in
start)
    mkdir -p /run/docker
    setsid dockerd --data-root /var/lib/docker --exec-root /run/docker --pidfile /run/docker.pid \
        -H unix:///run/docker.sock --storage-driver vfs </dev/null >/var/log/dockerd.log 2>&1 &
    for _ in $(seq 100); do
        grep -q 'API listen on' /var/log/dockerd.log && exit 0
        sleep 0.1
    done
    tail -5 /var/log/dockerd.log >&2
    exit 1 ;;
stop)
    pid=$(cat /run/docker.pid)
    kill "$pid"
    while [ -d "/proc/$pid" ]; do sleep 0.05; done ;;
esac
