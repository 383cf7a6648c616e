//! Who may do what. A token has a role; a collector's token may be bound to publishers. Tokens are
//! compared in constant time and never shown.

use crate::problem::Problem;
use serde::{Deserialize, Serialize};

/// The fewest bytes of a token where others than this machine may connect: fewer are guessed.
pub const TOKEN_BYTES_MIN: usize = 8;

/// What a token may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Sends events.
    Collector,
    /// Sends verdicts.
    Fraud,
    /// Reads reports, views and subscriptions.
    Reader,
    /// A reader who defines rollups and sees totals over all campaigns.
    Analyst,
    /// Everything.
    Operator,
}

/// What a request wants to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Send events.
    Collect,
    /// Send verdicts.
    Judge,
    /// Read reports, views and subscriptions.
    Read,
    /// Define rollups; read totals over all campaigns.
    Analyse,
    /// Change metadata, read status and the quarantine.
    Operate,
}

impl Role {
    /// Whether the role covers the action.
    pub const fn may(self, action: Action) -> bool {
        match self {
            Role::Operator => true,
            Role::Collector => matches!(action, Action::Collect),
            Role::Fraud => matches!(action, Action::Judge),
            Role::Reader => matches!(action, Action::Read),
            Role::Analyst => matches!(action, Action::Read | Action::Analyse),
        }
    }
}

/// A configured token.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Token {
    /// The secret; never printed.
    #[serde(skip_serializing)]
    pub token: String,
    /// What it may do.
    pub role: Role,
    /// For a collector: the only `publisherId`s that its events may carry. Empty: any.
    #[serde(default)]
    pub publishers: Vec<String>,
}

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Token {{ role: {:?}, publishers: {:?} }}", self.role, self.publishers)
    }
}

/// Checks the tokens of a configuration. Names them by their places, never by what they are.
///
/// # Errors
/// When a request could not carry one, or anybody could guess it, or what it may do is not clear.
pub fn check_tokens(tokens: &[Token], only_loopback: bool) -> Result<(), String> {
    for (at, Token { token, role, publishers }) in tokens.iter().enumerate() {
        if token.is_empty() {
            return Err(format!("`auth.tokens[{at}]` is empty; give it a secret"));
        }
        if !token.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(format!(
                "`auth.tokens[{at}]` holds a space or something else that no header carries; use \
                 ASCII letters, digits and signs"
            ));
        }
        if !only_loopback && token.len() < TOKEN_BYTES_MIN {
            return Err(format!(
                "`auth.tokens[{at}]` has {} bytes; give it {TOKEN_BYTES_MIN} or more, or listen on \
                 127.0.0.1",
                token.len()
            ));
        }
        if let Some(first) = tokens[..at].iter().position(|other| other.token == *token) {
            return Err(format!(
                "`auth.tokens[{first}]` and `auth.tokens[{at}]` are the same; a token has one role"
            ));
        }
        if *role != Role::Collector && !publishers.is_empty() {
            return Err(format!(
                "`auth.tokens[{at}]` has `publishers`, which bind a collector's token; its role is \
                 {role:?}: leave them out, or make it `collector`"
            ));
        }
    }
    Ok(())
}

/// All tokens of an installation.
#[derive(Clone, Debug, Default)]
pub struct Access(Vec<Token>);

/// Who sends a request.
#[derive(Clone, Copy, Debug)]
pub struct Identity<'a> {
    /// The index of the token, for rates a token; 0 when no token is configured.
    pub index: usize,
    /// What it may do.
    pub role: Role,
    /// The publishers that it is bound to. Empty: any.
    pub publishers: &'a [String],
}

impl Access {
    /// From the configuration. With no token at all everyone is an operator, and the server only
    /// listens on loopback.
    pub fn new(tokens: Vec<Token>) -> Access {
        Access(tokens)
    }

    /// Whether any token is configured.
    pub fn is_open(&self) -> bool {
        self.0.is_empty()
    }

    /// How many tokens there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// How many of them may send anything.
    pub fn senders(&self) -> usize {
        self.who_may(&[Action::Collect, Action::Judge, Action::Operate])
    }

    /// How many of them may read anything.
    pub fn readers(&self) -> usize {
        self.who_may(&[Action::Read, Action::Analyse, Action::Operate])
    }

    /// How many of them may do any of these.
    fn who_may(&self, actions: &[Action]) -> usize {
        let may = |token: &&Token| actions.iter().any(|&action| token.role.may(action));
        self.0.iter().filter(may).count()
    }

    /// Whether none is configured.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Checks an `Authorization` header for an action.
    ///
    /// # Errors
    /// 401 without a known token, 403 if its role does not cover the action.
    pub fn check(
        &self,
        authorization: Option<&str>,
        action: Action,
    ) -> Result<Identity<'_>, Problem> {
        if self.0.is_empty() {
            return Ok(Identity { index: 0, role: Role::Operator, publishers: &[] });
        }
        let sent = authorization.and_then(bearer).ok_or_else(|| {
            Problem::new(
                401,
                "no_token",
                "a token is required",
                "the request has no `Authorization: Bearer …` header",
                "send one of the tokens of `[auth] tokens` in the configuration",
            )
        })?;
        // Every token is looked at, so the time taken does not tell which one was near.
        let mut found = None;
        for (index, token) in self.0.iter().enumerate() {
            if equal_in_constant_time(token.token.as_bytes(), sent.trim().as_bytes()) {
                found = Some((index, token));
            }
        }
        let (index, token) = found.ok_or_else(|| {
            Problem::new(
                401,
                "unknown_token",
                "the token is not known",
                "the token of the `Authorization` header is not configured",
                "check for a typing error, or add it to `[auth] tokens`",
            )
        })?;
        if !token.role.may(action) {
            return Err(Problem::new(
                403,
                "wrong_role",
                "the token may not do this",
                format!("the token's role {:?} does not cover {action:?}", token.role),
                "use a token with another role",
            ));
        }
        Ok(Identity { index, role: token.role, publishers: &token.publishers })
    }
}

/// The token of a header; the scheme is written in any case (RFC 9110).
fn bearer(header: &str) -> Option<&str> {
    let (scheme, token) = header.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then_some(token)
}

fn equal_in_constant_time(a: &[u8], b: &[u8]) -> bool {
    // Lengths are no secret; the content is.
    a.len() == b.len()
        && std::hint::black_box(a.iter().zip(b).fold(0, |d, (x, y)| d | (x ^ y))) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_roles_and_openness() {
        let access = Access::new(vec![Token {
            token: "s3cret".into(),
            role: Role::Collector,
            publishers: vec!["pub_17".into()],
        }]);
        assert_eq!(access.check(None, Action::Collect).map(|_| ()).map_err(|p| p.status), Err(401));
        let wrong = access.check(Some("Bearer s3creT"), Action::Collect);
        assert_eq!(wrong.map(|_| ()).map_err(|p| p.code), Err("unknown_token"));
        let role = access.check(Some("Bearer s3cret"), Action::Read);
        assert_eq!(role.map(|_| ()).map_err(|p| p.status), Err(403));
        let good = access.check(Some("Bearer s3cret"), Action::Collect).expect("covered");
        assert_eq!(good.publishers, ["pub_17"]);
        for header in ["bearer s3cret", "BEARER   s3cret "] {
            assert!(access.check(Some(header), Action::Collect).is_ok(), "{header}");
        }
        for header in ["s3cret", "Basic s3cret", "Bearers3cret", "Bearer", "Bearer ", ""] {
            let refused = access.check(Some(header), Action::Collect);
            assert_eq!(refused.map(|_| ()).map_err(|p| p.status), Err(401), "{header}");
        }
        assert!(!format!("{access:?}").contains("s3cret"));
        assert_eq!((access.senders(), access.readers()), (1, 0));
        assert_eq!(
            Access::default().check(None, Action::Operate).expect("open").role,
            Role::Operator
        );
    }
    #[test]
    fn tokens_that_protect_nothing_are_refused() {
        let token = |token: &str, role, publishers: &[&str]| Token {
            token: token.into(),
            role,
            publishers: publishers.iter().map(|&p| p.into()).collect(),
        };
        let check = |tokens: &[Token]| check_tokens(tokens, false);
        let good = token("s3cret-of-8", Role::Collector, &["pub_17"]);
        assert_eq!(check(&[good.clone(), token("12345678", Role::Reader, &[])]), Ok(()));
        for (bad, why) in [
            (token("", Role::Operator, &[]), "tokens[1]` is empty"),
            (token(" s3cret-of-8", Role::Operator, &[]), "space"),
            (token("s3cret-of-8\n", Role::Operator, &[]), "space"),
            (token("        ", Role::Operator, &[]), "space"),
            (token("s3cret-öf-8", Role::Operator, &[]), "no header carries"),
            (token("1234567", Role::Operator, &[]), "has 7 bytes"),
            (token("s3cret-of-8", Role::Operator, &[]), "`auth.tokens[0]` and `auth.tokens[1]`"),
            (token("another-one", Role::Operator, &["pub_17"]), "`publishers`"),
            (token("another-one", Role::Reader, &["pub_17"]), "Reader"),
        ] {
            let error = check(&[good.clone(), bad.clone()]).expect_err(why);
            assert!(error.contains(why), "{error}");
            assert!(bad.token.trim().is_empty() || !error.contains(&bad.token), "{error}");
        }
        assert_eq!(check_tokens(&[token("short", Role::Reader, &[])], true), Ok(()));
        assert!(check_tokens(&[token("", Role::Reader, &[])], true).is_err());
    }
}
