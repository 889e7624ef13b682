//! Signs that a person uses this machine, or that its work costs that person something: input at
//! terminals and the built-in keyboard, a battery, a metered link. This reads files in /dev, /proc,
//! /sys and NetworkManager's, and asks no other program.
//!
//! It does not see a USB keyboard or mouse at a graphical desktop: the kernel counts no input of
//! these that could be read without reading the input itself.

use std::{
    fs, io,
    os::unix::fs::FileTypeExt,
    path::{Path, PathBuf},
    time::{Duration, Instant, SystemTime},
};

/// Drivers of phones and modems that share their data plan.
const METERED_DRIVERS: [&str; 5] = [
    "rndis_host",
    "ipheth",
    "cdc_mbim",
    "qmi_wwan",
    "huawei_cdc_ncm",
];
/// The names that interfaces of modems begin with.
const METERED_NAMES: [&str; 3] = ["wwan", "ppp", "rmnet"];

/// What was seen.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Signs {
    /// How long ago the last input was; `None` if none was seen.
    pub input_ago: Option<Duration>,
    /// Whether the machine runs on its battery.
    pub on_battery: bool,
    /// The interface of the default route, if it is metered.
    pub metered: Option<String>,
}

/// Looks for signs.
pub struct Watch {
    root: PathBuf,
    interrupts: Option<u64>,
    pressed: Option<Instant>,
}

impl Default for Watch {
    fn default() -> Self {
        Self::below(Path::new("/"))
    }
}

impl Watch {
    fn below(root: &Path) -> Self {
        Self {
            root: root.to_owned(),
            interrupts: None,
            pressed: None,
        }
    }

    /// Looks now. A file that cannot be read shows nothing.
    pub fn look(&mut self) -> Signs {
        let at_keyboard = self.keyboard(Instant::now());
        let at_terminals = self.terminals();
        Signs {
            input_ago: at_keyboard.into_iter().chain(at_terminals).min(),
            on_battery: self.on_battery(),
            metered: self.metered(),
        }
    }

    /// How long ago the built-in keyboard or pointer was used, by the growing count of its
    /// controller's interrupts.
    fn keyboard(&mut self, now: Instant) -> Option<Duration> {
        let text = fs::read_to_string(self.root.join("proc/interrupts")).unwrap_or_default();
        let count = pressed(&text);
        if self.interrupts.is_some_and(|before| before != count) {
            self.pressed = Some(now);
        }
        self.interrupts = Some(count);
        self.pressed.map(|at| now.saturating_duration_since(at))
    }

    /// How long ago a program read input of a terminal, as w(1) tells it: the time at which the
    /// terminal's file was last read.
    fn terminals(&self) -> Option<Duration> {
        let of = |dir: &str, is_terminal: fn(&str) -> bool| {
            let entries = fs::read_dir(self.root.join(dir)).into_iter().flatten();
            let entries = entries.flatten();
            entries
                .filter(move |entry| entry.file_name().to_str().is_some_and(is_terminal))
                .filter_map(|entry| read_ago(&entry.path()).ok())
                .min()
        };
        let consoles = of("dev", |name| {
            let number = name.strip_prefix("tty");
            number.is_some_and(|number| number.parse::<u8>().is_ok())
        });
        let others = of("dev/pts", |name| name.parse::<u32>().is_ok());
        consoles.into_iter().chain(others).min()
    }

    fn supplies(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.root.join("sys/class/power_supply"));
        let entries = entries.into_iter().flatten().flatten();
        entries.map(|entry| entry.path()).collect()
    }

    fn on_battery(&self) -> bool {
        let (mut has_battery, mut discharges, mut mains) = (false, false, None);
        for supply in self.supplies() {
            let said = |file: &str| line(&supply.join(file));
            match said("type").as_str() {
                // A mouse has one too.
                "Battery" if said("scope") != "Device" => {
                    has_battery = true;
                    discharges |= said("status") == "Discharging";
                }
                "Mains" => mains = Some(mains.unwrap_or(false) | (said("online") == "1")),
                _ => {}
            }
        }
        has_battery && mains.map_or(discharges, |online| !online)
    }

    fn metered(&self) -> Option<String> {
        let routes = fs::read_to_string(self.root.join("proc/net/route")).unwrap_or_default();
        let interface = default_interface(&routes)?;
        let is_modem = METERED_NAMES.iter().any(|name| interface.starts_with(name));
        let device = self.root.join("sys/class/net").join(&interface);
        let driver = fs::read_link(device.join("device/driver")).unwrap_or_default();
        let driver = driver.file_name().unwrap_or_default();
        let is_shared = METERED_DRIVERS.iter().any(|known| driver == *known);
        let said = || self.says_network_manager(&line(&device.join("ifindex")));
        (is_modem || is_shared || said()).then_some(interface)
    }

    /// Whether NetworkManager's connection on the interface is marked as metered.
    fn says_network_manager(&self, index: &str) -> bool {
        let run = self.root.join("run/NetworkManager");
        let device = fs::read_to_string(run.join("devices").join(index)).unwrap_or_default();
        let Some(uuid) = device
            .lines()
            .find_map(|l| l.strip_prefix("connection-uuid="))
        else {
            return false;
        };
        let uuid = format!("uuid={uuid}");
        let etc = self.root.join("etc/NetworkManager/system-connections");
        [etc, run.join("system-connections")].iter().any(|dir| {
            let files = fs::read_dir(dir).into_iter().flatten().flatten();
            let texts = files.filter_map(|file| fs::read_to_string(file.path()).ok());
            texts
                .filter(|text| text.lines().any(|l| l == uuid))
                .any(|text| text.lines().any(|l| l == "metered=1"))
        })
    }
}

/// The interrupts of the controller of the built-in keyboard and pointer, by /proc/interrupts.
fn pressed(text: &str) -> u64 {
    let lines = text.lines().filter(|line| line.contains("i8042"));
    let counts = lines.flat_map(|line| {
        let fields = line.split_ascii_whitespace().skip(1);
        fields.map_while(|field| field.parse::<u64>().ok())
    });
    counts.fold(0, u64::wrapping_add)
}

/// The interface of the IPv4 default route with the least metric, by /proc/net/route (proc(5)).
fn default_interface(text: &str) -> Option<String> {
    let routes = text.lines().skip(1).filter_map(|line| {
        let fields: Vec<&str> = line.split_ascii_whitespace().collect();
        let (to, mask) = (fields.get(1)?, fields.get(7)?);
        let is_default = *to == "00000000" && *mask == "00000000";
        let metric: u32 = fields.get(6)?.parse().ok()?;
        is_default.then(|| (metric, fields[0].to_owned()))
    });
    routes.min().map(|(_, interface)| interface)
}

fn read_ago(path: &Path) -> io::Result<Duration> {
    let found = fs::metadata(path)?;
    if !found.file_type().is_char_device() {
        return Err(io::Error::other("no terminal"));
    }
    since(found.accessed()?, SystemTime::now())
}

/// How long ago that was. A time to come is older than the clock's last setting, such as that of a
/// terminal's file made before a clock in local time was understood: it shows no input.
fn since(then: SystemTime, now: SystemTime) -> io::Result<Duration> {
    now.duration_since(then).map_err(io::Error::other)
}

/// The first line of a small file.
fn line(path: &Path) -> String {
    let text = fs::read_to_string(path).unwrap_or_default();
    text.lines().next().unwrap_or_default().trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_to_come_shows_no_input() {
        let (now, hour) = (SystemTime::now(), Duration::from_secs(3600));
        assert_eq!(since(now - hour, now).ok(), Some(hour));
        assert!(since(now + hour, now).is_err());
    }

    fn write(root: &Path, file: &str, text: &str) {
        let path = root.join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    #[test]
    fn a_machine_without_any_of_it_shows_no_signs() {
        let root = tempfile::tempdir().unwrap();
        assert_eq!(Watch::below(root.path()).look(), Signs::default());
    }

    #[test]
    fn a_pressed_key_is_seen_and_grows_old() {
        let root = tempfile::tempdir().unwrap();
        let interrupts = |n: u32| {
            let text = format!(
                "      CPU0  CPU1\n  1:  {n}  7  IO-APIC  1-edge  i8042\n  8: 1 2 IO-APIC rtc0\n"
            );
            write(root.path(), "proc/interrupts", &text);
        };
        interrupts(5);
        let mut watch = Watch::below(root.path());
        let now = Instant::now();
        assert_eq!(watch.keyboard(now), None);
        interrupts(6);
        assert_eq!(watch.keyboard(now), Some(Duration::ZERO));
        let minute = Duration::from_secs(60);
        assert_eq!(watch.keyboard(now + minute), Some(minute));
    }

    #[test]
    fn a_battery_counts_where_no_mains_are_connected() {
        let root = tempfile::tempdir().unwrap();
        let supply = |name: &str, file: &str, text: &str| {
            let path = format!("sys/class/power_supply/{name}/{file}");
            write(root.path(), &path, text);
        };
        let watch = Watch::below(root.path());
        supply("mouse", "type", "Battery\n");
        supply("mouse", "scope", "Device\n");
        supply("mouse", "status", "Discharging\n");
        assert!(!watch.on_battery(), "a mouse's");
        supply("BAT0", "type", "Battery\n");
        supply("BAT0", "status", "Discharging\n");
        assert!(watch.on_battery());
        supply("AC", "type", "Mains\n");
        supply("AC", "online", "1\n");
        assert!(!watch.on_battery());
        supply("AC", "online", "0\n");
        assert!(watch.on_battery());
    }

    #[test]
    fn a_link_is_metered_by_its_kind_or_network_manager() {
        let root = tempfile::tempdir().unwrap();
        let route = |interface: &str| {
            let text = format!(
                "Iface Destination Gateway Flags RefCnt Use Metric Mask MTU Window IRTT\n\
                 docker0 0000FEA9 00000000 0001 0 0 0 0000FFFF 0 0 0\n\
                 {interface} 00000000 0102A8C0 0003 0 0 600 00000000 0 0 0\n"
            );
            write(root.path(), "proc/net/route", &text);
        };
        let watch = Watch::below(root.path());
        assert_eq!(watch.metered(), None);
        route("wwan0");
        assert_eq!(watch.metered(), Some("wwan0".to_owned()));
        route("wlan0");
        assert_eq!(watch.metered(), None);
        write(root.path(), "sys/class/net/wlan0/ifindex", "3\n");
        write(
            root.path(),
            "run/NetworkManager/devices/3",
            "[device]\nconnection-uuid=1-2\n",
        );
        let connection = |metered: &str| {
            let file = "etc/NetworkManager/system-connections/home.nmconnection";
            let text = format!("[connection]\nuuid=1-2\n{metered}\n");
            write(root.path(), file, &text);
        };
        connection("metered=2");
        assert_eq!(watch.metered(), None);
        connection("metered=1");
        assert_eq!(watch.metered(), Some("wlan0".to_owned()));
    }
}
