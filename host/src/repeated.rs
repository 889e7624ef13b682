//! Which repetitions of the same trouble are worth a line in the log: the first, then the 2nd, 4th,
//! 8th, ... So a retry loop says once what is wrong, says now and then that it still is, and never
//! floods.

/// One kind of trouble at one place.
#[derive(Debug, Default)]
pub struct Repeated {
    what: String,
    times: u64,
}

impl Repeated {
    /// Nothing has happened yet.
    pub const fn new() -> Self {
        Self {
            what: String::new(),
            times: 0,
        }
    }

    /// It has happened again: how often so far, if that is worth a line. Another `what` begins
    /// anew.
    pub fn again(&mut self, what: &str) -> Option<u64> {
        if self.what != what {
            self.what.clear();
            self.what.push_str(what);
            self.times = 0;
        }
        self.times = self.times.saturating_add(1);
        self.times.is_power_of_two().then_some(self.times)
    }

    /// It is over: how often it had happened, if it had.
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
