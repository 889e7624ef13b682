//! The local time of day on this machine's clock, for settings in hours.

/// The minute of the local day now, 0 to 1439; `None` if the system does not know.
pub fn minute_of_day() -> Option<u16> {
    let now = std::time::SystemTime::now();
    let since = now.duration_since(std::time::UNIX_EPOCH).ok()?;
    let seconds = libc::time_t::try_from(since.as_secs()).ok()?;
    let mut local = std::mem::MaybeUninit::<libc::tm>::uninit();
    // SAFETY: both pointers are valid for the call; localtime_r writes the whole structure if it
    // does not return null.
    let local = unsafe {
        if libc::localtime_r(&raw const seconds, local.as_mut_ptr()).is_null() {
            return None;
        }
        local.assume_init()
    };
    u16::try_from(local.tm_hour * 60 + local.tm_min).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_day_has_so_many_minutes() {
        assert!(minute_of_day().unwrap() < 24 * 60);
    }
}
