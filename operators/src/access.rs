//! Who may do what. A token has a role; a collector's token may be bound to publishers. Tokens are
//! compared in constant time and never shown.

use crate::problem::Problem;
use serde::{Deserialize, Serialize};

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
        let sent = authorization.and_then(|h| h.strip_prefix("Bearer ")).ok_or_else(|| {
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
        assert!(!format!("{access:?}").contains("s3cret"));
        assert_eq!(
            Access::default().check(None, Action::Operate).expect("open").role,
            Role::Operator
        );
    }
}
