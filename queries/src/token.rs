//! Page tokens: where an answer goes on, bound to the epoch and to the question, and opaque. The
//! next page is of the same epoch as the first, so nothing is skipped or repeated between pages;
//! when that epoch is no longer kept the token is `410`, never another epoch's rows.

use crate::problems::wrong;
use trueup_operators::{hash, problem::Problem, time::Epoch};

/// A page token: the epoch, and three numbers that say where in the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Token {
    pub(crate) epoch: Epoch,
    pub(crate) place: [u64; 3],
}

impl Token {
    /// Writes a token that is only good for this question.
    pub(crate) fn write(&self, question: &str) -> String {
        let words = [self.epoch, self.place[0], self.place[1], self.place[2]];
        let check = check(&words, question);
        let [a, b, c, d] = words;
        format!("{a:x}.{b:x}.{c:x}.{d:x}.{check:08x}")
    }

    /// Reads a token of this question.
    pub(crate) fn read(text: &str, question: &str) -> Result<Token, Problem> {
        let parts: Vec<u64> = text
            .split('.')
            .take(6)
            .map(|p| u64::from_str_radix(p, 16))
            .collect::<Result<_, _>>()
            .map_err(|_| bad("it is damaged"))?;
        let &[epoch, a, b, c, sent] = parts.as_slice() else { return Err(bad("it is damaged")) };
        if u64::from(check(&[epoch, a, b, c], question)) != sent {
            return Err(bad("it belongs to another question"));
        }
        Ok(Token { epoch, place: [a, b, c] })
    }
}

/// Not a secret: it keeps a token from being used with other parameters by mistake.
fn check(words: &[u64; 4], question: &str) -> u32 {
    words.iter().fold(hash::stable(question.as_bytes()), |h, &w| hash::mix(h, w)) as u32
}

fn bad(why: &str) -> Problem {
    wrong(
        "bad_page_token",
        format!("`pageToken` cannot be used: {why}"),
        "send the `nextPageToken` of the answer before with otherwise the same parameters",
    )
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_token_is_good_for_its_question_alone() {
        let token = Token { epoch: 77, place: [1, u64::MAX, 3] };
        let text = token.write("a");
        assert_eq!(Token::read(&text, "a").unwrap(), token);
        for (text, question) in
            [(text.as_str(), "b"), ("", "a"), ("1.2.3", "a"), ("x", "a"), (&text[1..], "a")]
        {
            assert_eq!(Token::read(text, question).unwrap_err().code, "bad_page_token");
        }
    }
}
