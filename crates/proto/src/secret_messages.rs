//! `Debug` for messages that carry secrets: the name and nothing else.

use std::fmt;

use crate::{auth, token_broker};

macro_rules! opaque {
    ($($module:ident::$name:ident),* $(,)?) => {$(
        impl fmt::Debug for $module::v1::$name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(concat!(stringify!($name), "(…)"))
            }
        }
    )*};
}

opaque!(
    auth::RegisterRequest,
    auth::SignInRequest,
    auth::TokenPair,
    auth::RefreshRequest,
    auth::ChangePasswordRequest,
    auth::IssueTokenRequest,
    auth::IssueTokenResponse,
    auth::ExchangeTokenRequest,
    auth::ExchangeTokenResponse,
    auth::IntrospectTokenRequest,
    auth::IntrospectTokenResponse,
    auth::RevokeTokenRequest,
    auth::CreateApiKeyResponse,
    auth::RotateApiKeyResponse,
    token_broker::BeginConnectionResponse,
    token_broker::CompleteConnectionRequest,
    token_broker::GetAccessTokenResponse,
);
