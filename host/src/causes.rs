//! An error's whole chain of causes as one sentence, each part once.
//!
//! The `Display` of an error says its own step and leaves the cause to `source()`. Where an error
//! leaves the program's types (the command line's last line, an API answer, a log line, words to
//! another member), [`chain`] makes one sentence of it. Errors of other crates often include their
//! cause; it is then not repeated.

use std::error::Error;

/// How many causes a chain has at most.
/// Reason: bounds a chain that runs in a circle.
const MOST: usize = 16;

/// `error` and its causes, joined by colons: "cannot bind UDP port 4002: Address already in use (os
/// error 98)". A cause that the sentence already ends with, because a `Display` includes its
/// source, is not repeated.
pub fn chain(error: &dyn Error) -> String {
    let mut said = error.to_string();
    let mut next = error.source();
    for _ in 0..MOST {
        let Some(cause) = next else { break };
        let words = cause.to_string();
        if !ends_with(&said, &words) {
            said.push_str(": ");
            said.push_str(&words);
        }
        next = cause.source();
    }
    said
}

/// Whether the sentence ends with these whole words, apart from a closing bracket or full stop.
fn ends_with(said: &str, words: &str) -> bool {
    let open = |text: &str| text.trim_end_matches([')', ']', '\'', '"', '.']).len();
    let (said, words) = (&said[..open(said)], &words[..open(words)]);
    said.strip_suffix(words)
        .is_some_and(|before| words.is_empty() || !before.ends_with(char::is_alphanumeric))
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
        let said = chain(&Step(
            "starting",
            Some(Box::new(Step("cannot make p2pvm0", Some(kernel())))),
        ));
        assert_eq!(
            said,
            "starting: cannot make p2pvm0: Operation not permitted (os error 1)"
        );
        let told = Step("no: Operation not permitted (os error 1)", Some(kernel()));
        assert_eq!(chain(&told), told.0);
        let closed = Step("no (Operation not permitted (os error 1))", Some(kernel()));
        assert_eq!(chain(&closed), closed.0);
        assert_eq!(chain(&Step("alone", None)), "alone");
    }

    #[test]
    fn a_cause_is_left_out_only_where_the_sentence_ends_with_it() {
        let said = |step, words| chain(&Step(step, Some(Box::new(Step(words, None)))));
        assert_eq!(
            said("writing: the disk is full", "the disk is full"),
            "writing: the disk is full"
        );
        assert_eq!(
            said("looking up the full name", "full"),
            "looking up the full name: full"
        );
        assert_eq!(said("asking for port 4002", "2"), "asking for port 4002: 2");
        assert_eq!(said("told nothing", ""), "told nothing");
    }
}
