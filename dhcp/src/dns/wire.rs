//! The few fields of a message that forwarding reads. Messages are not parsed further, and pass
//! unchanged.

/// The transport of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Carrier {
    /// A datagram, of limited size.
    Udp,
    /// A stream: any size (RFC 7766).
    Tcp,
}

pub(super) const HEADER_BYTES: usize = 12;
/// How long a datagram is that every stub resolver accepts (RFC 1035 §4.2.1).
const PLAIN_BYTES: usize = 512;
const OPT: u16 = 41;

/// The end of a message's only question.
fn question_end(message: &[u8]) -> Option<usize> {
    let mut at = HEADER_BYTES;
    loop {
        match usize::from(*message.get(at)?) {
            0 => return Some(at + 5).filter(|end| *end <= message.len()),
            length @ 1..=63 => at += 1 + length,
            // A question's name is not compressed: there is nothing before it.
            _ => return None,
        }
    }
}

/// The size that the client accepts: of the EDNS record right after the question, as in a query.
fn edns_bytes(query: &[u8]) -> Option<usize> {
    let record = query.get(question_end(query)?..)?;
    let word = |at: usize| Some(u16::from_be_bytes([*record.get(at)?, *record.get(at + 1)?]));
    (record.first() == Some(&0) && word(1)? == OPT).then(|| word(3).map(usize::from))?
}

/// Equal for equal questions: the text without case, and whether the client accepts longer answers
/// and signatures.
pub(super) fn question_key(query: &[u8]) -> Option<Vec<u8>> {
    let end = question_end(query)?;
    let mut key = query.get(HEADER_BYTES..end)?.to_ascii_lowercase();
    // RD and CD.
    key.extend([query[2] & 1, query[3] & 0x10]);
    key.extend(query.get(end..).unwrap_or_default());
    Some(key)
}

/// Whether a message answers a query.
pub(super) fn answers(answer: &[u8], query: &[u8]) -> bool {
    let Some(end) = question_end(query) else {
        return false;
    };
    let is_response = answer.get(2).is_some_and(|flags| flags & 0x80 != 0);
    let same_question = answer
        .get(HEADER_BYTES..end)
        .is_some_and(|q| q.eq_ignore_ascii_case(&query[HEADER_BYTES..end]));
    is_response && answer[..2] == query[..2] && same_question
}

/// An answer to the same question, with this query's id and its letters.
pub(super) fn as_asked(mut answer: Vec<u8>, query: &[u8]) -> Option<Vec<u8>> {
    let end = question_end(query)?;
    answer.get_mut(..2)?.copy_from_slice(&query[..2]);
    answer
        .get_mut(HEADER_BYTES..end)?
        .copy_from_slice(&query[HEADER_BYTES..end]);
    Some(answer)
}

/// The response code (RFC 1035 §4.1.1).
pub(super) fn code(message: &[u8]) -> u8 {
    message.get(3).map_or(2, |flags| flags & 15)
}

/// Whether the answer section has records.
pub(super) fn has_answers(message: &[u8]) -> bool {
    message.get(6..8).is_some_and(|count| count != [0, 0])
}

/// Whether the answer is truncated (TC).
pub(super) fn is_cut(message: &[u8]) -> bool {
    message.get(2).is_some_and(|flags| flags & 2 != 0)
}

/// The answer within the size that the client accepts: a longer one is cut to its head, so that the
/// client retries over TCP.
pub(super) fn fitted(mut answer: Vec<u8>, query: &[u8], carrier: Carrier) -> Vec<u8> {
    let room = edns_bytes(query).unwrap_or(PLAIN_BYTES).max(PLAIN_BYTES);
    if carrier == Carrier::Udp && answer.len() > room {
        answer.truncate(question_end(query).unwrap_or(HEADER_BYTES));
        answer[2] |= 2;
        answer[6..HEADER_BYTES].fill(0);
    }
    answer
}
