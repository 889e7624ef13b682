//! Which repetitions of a failure are logged: the first, the 2nd, 4th, 8th, ... So a retry loop
//! logs once what is wrong, repeats it now and then, and never floods the log.

/// A counter of one kind of failure at one place.
#[derive(Debug, Default)]
pub struct Repeated {
    what: String,
    times: u64,
}

impl Repeated {
    /// A counter at zero.
    pub const fn new() -> Self {
        Self {
            what: String::new(),
            times: 0,
        }
    }

    /// Counts a failure. Returns how often it has happened if it should be logged. Another `what`
    /// starts at zero.
    pub fn again(&mut self, what: &str) -> Option<u64> {
        if self.what != what {
            self.what.clear();
            self.what.push_str(what);
            self.times = 0;
        }
        self.times = self.times.saturating_add(1);
        self.times.is_power_of_two().then_some(self.times)
    }

    /// Resets the counter. Returns how often the failure had happened, if it had.
    pub fn over(&mut self) -> Option<u64> {
        let times = std::mem::take(&mut self.times);
        self.what.clear();
        (times > 0).then_some(times)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trouble_is_said_at_once_and_then_ever_more_seldom() {
        let mut trouble = Repeated::new();
        let said: Vec<u64> = (0..1000)
            .filter_map(|_| trouble.again("no address"))
            .collect();
        assert_eq!(said, [1, 2, 4, 8, 16, 32, 64, 128, 256, 512]);
        assert_eq!(
            trouble.again("another"),
            Some(1),
            "what is new is said at once"
        );
        assert_eq!((trouble.over(), trouble.over()), (Some(1), None));
    }
}
