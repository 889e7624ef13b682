# ufw as 'ufw enable' leaves it: what comes in and what is forwarded is dropped, but answers.
case $1 in
start) ufw --force enable >/dev/null ;;
stop) ufw --force disable >/dev/null ;;
esac
