//! Both state machines against each other.

use proptest::prelude::*;
use zeroize::Zeroizing;

use crate::credential::verifier::{Parameters, Verifier};
use crate::login::postgres::client::failure::LoginFailure;
use crate::login::postgres::client::{Claim, ClientLogin, ClientStep};
use crate::login::postgres::tests::{chunks, request, verifier};
use crate::login::postgres::upstream::{Credentials, UpstreamFailure, UpstreamLogin, UpstreamStep};

/// The end of a conversation: what the server and the client found.
#[derive(Debug, PartialEq)]
struct End {
    server: Result<usize, LoginFailure>,
    /// Whether the client accepts the session.
    client: Result<bool, UpstreamFailure>,
}

/// Lets a client with a password authenticate to a server. Each side receives the bytes of the other in chunks.
fn converse(
    verifiers: &[Verifier],
    password: &str,
    (of_server, of_client): (Option<&[u8]>, Option<&[u8]>),
    cuts: &[usize],
) -> End {
    let claim = Claim { user: b"app", verifiers, mock: Parameters::mock("app", &[1; 32]) };
    let mut server = ClientLogin::new(claim, of_server.map(<[u8]>::to_vec), "server".to_owned());
    let credentials = Credentials { user: "app", password: Some(password), binding: of_client, is_confidential: false };
    let mut client = UpstreamLogin::new(credentials, "client".to_owned());
    let mut to_client = server.first();
    let mut verdict = None;
    loop {
        let mut to_server = Zeroizing::default();
        for chunk in chunks(&std::mem::take(&mut to_client), cuts) {
            match client.follow(chunk, &mut to_server, |parameters| Some(parameters.salted(password))) {
                Ok(UpstreamStep::Ongoing) => {}
                Ok(UpstreamStep::Salt(_)) => unreachable!("it is known"),
                Ok(UpstreamStep::Done { .. }) => return End { server: verdict.unwrap(), client: Ok(true) },
                Ok(UpstreamStep::Refused(_)) => return End { server: verdict.unwrap(), client: Ok(false) },
                Err(error) => return End { server: verdict.unwrap_or(Ok(0)), client: Err(error) },
            }
        }
        for chunk in chunks(&to_server, cuts) {
            match server.follow(chunk, &mut to_client) {
                ClientStep::Ongoing => {}
                ClientStep::Proven(proven) => {
                    to_client.extend([proven.message, request(0, b"")].concat());
                    verdict = Some(Ok(proven.index));
                }
                ClientStep::Failed(failed) => {
                    to_client.extend(failed.message);
                    verdict = Some(Err(failed.why));
                    break;
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn right_password_is_accepted_by_both_sides(
        cuts in prop::collection::vec(1_usize..60, 1..8),
        is_second in any::<bool>(),
        (server_binds, client_binds) in any::<(bool, bool)>(),
    ) {
        let verifiers = [verifier("first"), verifier("second")];
        let password = if is_second { "second" } else { "first" };
        let bindings = (server_binds.then_some(&b"hash"[..]), client_binds.then_some(&b"hash"[..]));
        let end = converse(&verifiers, password, bindings, &cuts);
        prop_assert_eq!(end, End { server: Ok(is_second.into()), client: Ok(true) });
    }

    #[test]
    fn wrong_password_and_unknown_user_are_rejected(
        cuts in prop::collection::vec(1_usize..60, 1..8),
        is_known in any::<bool>(),
        is_bound in any::<bool>(),
    ) {
        let known = [verifier("first"), verifier("second")];
        let binding = is_bound.then_some(&b"hash"[..]);
        let verifiers = if is_known { &known[..] } else { &[] };
        let why = if is_known { LoginFailure::WrongPassword } else { LoginFailure::UnknownUser };
        let end = converse(verifiers, "third", (binding, binding), &cuts);
        prop_assert_eq!(end, End { server: Err(why), client: Ok(false) });
    }
}

#[test]
fn proxy_between_both_sides_is_noticed_by_channel_binding() {
    use crate::credential::scram::server::ServerError;
    let verifiers = [verifier("pencil")];
    let end = converse(&verifiers, "pencil", (Some(b"hash"), Some(b"other")), &[64]);
    assert_eq!(end, End { server: Err(LoginFailure::Scram(ServerError::Binding)), client: Ok(false) });
}
