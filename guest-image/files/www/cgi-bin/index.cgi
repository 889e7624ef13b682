#!/bin/sh
# The status page.
printf 'Content-Type: text/plain\r\n\r\n'
read -r boot </proc/sys/kernel/random/boot_id
read -r counter </run/counter
read -r up _ </proc/uptime
printf 'boot %s\ncounter %s\nuptime %s\n' "$boot" "$counter" "$up"
