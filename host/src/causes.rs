//! An error's whole chain of causes as one sentence, each cause once.

use std::error::Error;

/// More causes than any error of ours has; bounds a chain that runs in a circle.
const MOST: usize = 16;

/// `error` and what caused it, joined by colons: "cannot bind UDP port 4002: Address already in use (os error 98)".
/// A cause that the sentence names already, as where a `Display` includes its source, is not repeated.
pub fn chain(error: &(dyn Error + 'static)) -> String {
    let mut said = error.to_string();
    let mut next = error.source();
    for _ in 0..MOST {
        let Some(cause) = next else { break };
        let words = cause.to_string();
        if !words.is_empty() && !said.contains(&words) {
            said.push_str(": ");
            said.push_str(&words);
        }
        next = cause.source();
    }
    said
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{fmt, io};

    #[derive(Debug)]
    struct Step(&'static str, Option<Box<dyn Error + 'static>>);

    impl fmt::Display for Step {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str(self.0)
        }
    }

    impl Error for Step {
        fn source(&self) -> Option<&(dyn Error + 'static)> {
            self.1.as_deref()
        }
    }

    #[test]
    fn every_cause_is_named_and_none_twice() {
        let kernel = || Box::new(io::Error::from_raw_os_error(1));
        let said = chain(&Step("starting", Some(Box::new(Step("cannot make p2pvm0", Some(kernel()))))));
        assert_eq!(said, "starting: cannot make p2pvm0: Operation not permitted (os error 1)");
        let told = Step("no: Operation not permitted (os error 1)", Some(kernel()));
        assert_eq!(chain(&told), told.0);
        assert_eq!(chain(&Step("alone", None)), "alone");
    }
}
