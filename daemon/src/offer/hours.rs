//! The hours of a day, such as "18:00-08:00": from the first minute to before the last, over
//! midnight if the first is later.

use std::{fmt, str::FromStr};

/// Minutes of a day.
const DAY: u16 = 24 * 60;

/// A part of each day.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Hours {
    from: u16,
    to: u16,
}

impl Hours {
    /// Whether it has that minute of the day.
    pub(crate) fn has(self, minute: u16) -> bool {
        if self.from < self.to {
            (self.from..self.to).contains(&minute)
        } else {
            minute >= self.from || minute < self.to
        }
    }
}

fn time(text: &str) -> Option<u16> {
    let (hour, minute) = text.trim().split_once(':')?;
    let number = |text: &str| {
        let is_number = (1..=2).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_digit());
        is_number.then(|| text.parse::<u16>().ok()).flatten()
    };
    let (hour, minute) = (number(hour)?, number(minute)?);
    (minute < 60 && hour * 60 + minute <= DAY).then_some(hour * 60 + minute)
}

impl FromStr for Hours {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts = text.split_once('-');
        let times = parts.and_then(|(from, to)| Some((time(from)?, time(to)?)));
        match times {
            Some((from, to)) if from != to && from < DAY => Ok(Self { from, to }),
            _ => Err(format!(
                "'{text}' are no hours: write them as 18:00-08:00, with two different times"
            )),
        }
    }
}

impl fmt::Display for Hours {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (from, to) = (self.from, self.to);
        let minutes = (from % 60, to % 60);
        write!(
            f,
            "{:02}:{:02}-{:02}:{:02}",
            from / 60,
            minutes.0,
            to / 60,
            minutes.1
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn hours_go_over_midnight_and_end_before_their_last_minute() {
        let has = |text: &str, hour: u16, minute: u16| {
            let hours: Hours = text.parse().unwrap();
            hours.has(hour * 60 + minute)
        };
        for (text, hour, minute, expected) in [
            ("09:00-17:00", 9, 0, true),
            ("09:00-17:00", 16, 59, true),
            ("09:00-17:00", 17, 0, false),
            ("09:00-17:00", 8, 59, false),
            ("18:00-08:00", 23, 59, true),
            ("18:00-08:00", 0, 0, true),
            ("18:00-08:00", 7, 59, true),
            ("18:00-08:00", 8, 0, false),
            ("18:00-24:00", 23, 59, true),
            ("18:00-24:00", 0, 0, false),
            ("0:00-24:00", 12, 0, true),
        ] {
            assert_eq!(has(text, hour, minute), expected, "{text} {hour}:{minute}");
        }
    }

    #[test]
    fn what_are_no_hours_is_refused_with_an_example() {
        for text in [
            "",
            "18:00",
            "18-8",
            "24:00-08:00",
            "18:00-18:00",
            "18:60-20:00",
            "25:00-26:00",
            "+1:00-02:00",
            "18:00-08:00-09:00",
        ] {
            let said = text.parse::<Hours>().unwrap_err();
            assert!(said.contains("18:00-08:00"), "{text}: {said}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_hours_that_print_the_same_or_refused(text in "\\PC{0,14}") {
            if let Ok(hours) = text.parse::<Hours>() {
                prop_assert_eq!(hours.to_string().parse::<Hours>(), Ok(hours));
            }
        }

        #[test]
        fn a_minute_is_in_the_hours_or_in_the_others(from in 0u16..1440, to in 0u16..1440,
            minute in 0u16..1440) {
            prop_assume!(from != to);
            let (here, there) = (Hours { from, to }, Hours { from: to, to: from });
            prop_assert!(here.has(minute) != there.has(minute));
        }
    }
}
