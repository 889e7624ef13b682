# ufw as 'ufw enable' leaves it: drops incoming and forwarded packets, except answers.
case $1 in
start) ufw --force enable >/dev/null ;;
stop) ufw --force disable >/dev/null ;;
esac
