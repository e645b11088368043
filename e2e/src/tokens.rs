//! A token service as Docker's "Token Authentication" and "OAuth2" specifications have it, beside a [`crate::registry`] that
//! trusts its signature. Started by the registry; tests ask it what it gave to whom.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::header::AUTHORIZATION;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::node::Node;
use crate::tls::Identity;

/// Whom registries trust, and what the registry is called in tokens.
pub(crate) const ISSUER: &str = "shoal e2e";
pub(crate) const SERVICE: &str = "registry of the lab";
/// The port it listens on.
pub const PORT: u16 = 8080;
/// How long after its end docker-registry still takes a token, in seconds: its leeway for wrong clocks.
const LEEWAY_S: i64 = 60;
/// What clients are told of a token's life, in seconds; the least that Docker believes.
const TOLD_LIFETIME_S: i64 = 60;

/// Someone with a password. The one without a name is anybody: what that one may have is public.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct User {
    /// The name.
    pub name: &'static str,
    /// The password.
    pub password: &'static str,
    /// The repositories that tokens give, to read and to write.
    pub repositories: &'static [&'static str],
}

impl User {
    /// Both, as `name:password`.
    #[must_use]
    pub fn with_password(&self) -> String {
        format!("{}:{}", self.name, self.password)
    }
}

/// A token that was given, or a password that was refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asked {
    /// `GET` or `POST`.
    pub method: String,
    /// The user; none who came without a password.
    pub user: Option<String>,
    /// The scopes asked for.
    pub scopes: Vec<String>,
    /// Whether there was a token in the answer, be it one that gives nothing.
    pub given: bool,
}

/// A running token service; stops when dropped.
#[derive(Debug)]
pub struct TokenService {
    shared: Arc<Shared>,
    stop: CancellationToken,
    thread: Option<JoinHandle<()>>,
    root: PathBuf,
}

#[derive(Debug)]
struct Shared {
    users: &'static [User],
    key: EcdsaKeyPair,
    /// The certificate that goes with the key, as tokens carry it.
    certificate: String,
    asked: Mutex<Vec<Asked>>,
    /// For how many seconds registries take the next tokens.
    lifetime_s: Mutex<i64>,
}

impl TokenService {
    /// Starts it on a node, with keys of its own under `dir`.
    ///
    /// # Errors
    /// When the keys cannot be made or the port is taken.
    pub fn start(node: &Node, dir: &Path, users: &'static [User]) -> Result<Self> {
        let identity = Identity::make(dir, "tokens.lab")?;
        let key = PrivatePkcs8KeyDer::from_pem_file(&identity.key)?;
        let key = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, key.secret_pkcs8_der())
            .context("key of the tokens")?;
        let certificate = STANDARD.encode(CertificateDer::from_pem_file(&identity.certificate)?);
        let shared = Arc::new(Shared {
            users,
            key,
            certificate,
            asked: Mutex::default(),
            lifetime_s: Mutex::new(LEEWAY_S + TOLD_LIFETIME_S),
        });
        let listener = node.listen(PORT, Ok)?;
        listener.set_nonblocking(true)?;
        let stop = CancellationToken::new();
        let (served, stopped) = (Arc::clone(&shared), stop.clone());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let thread = std::thread::spawn(move || {
            runtime.block_on(stopped.run_until_cancelled(serve(listener, served)));
        });
        Ok(Self { shared, stop, thread: Some(thread), root: identity.ca })
    }

    /// The certificate that registries must trust.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Makes registries take the tokens given from now on for this many seconds, whatever their clients are told.
    pub fn let_tokens_live(&self, seconds: i64) {
        *self.shared.lifetime_s.lock().unwrap_or_else(PoisonError::into_inner) = seconds;
    }

    /// A token for pulling from a repository, as a client would get it.
    ///
    /// # Errors
    /// When the password is wrong.
    pub fn token(&self, user: Option<&User>, repository: &str) -> Result<String> {
        let scope = format!("repository:{repository}:pull");
        let password = user.map(|user| (user.name.to_owned(), user.password.to_owned()));
        self.shared.grant("test", password, vec![scope]).context("the password is wrong")
    }

    /// What was asked so far, in order.
    #[must_use]
    pub fn asked(&self) -> Vec<Asked> {
        self.shared.asked.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for TokenService {
    fn drop(&mut self) {
        self.stop.cancel();
        let _panicked = self.thread.take().map(JoinHandle::join);
    }
}

impl Shared {
    /// Gives a token for what the user may have of the scopes; nothing to one whose password is wrong.
    fn grant(&self, method: &str, password: Option<(String, String)>, scopes: Vec<String>) -> Option<String> {
        let known = |name: &str, given: &str| {
            self.users.iter().find(|user| user.name == name && user.password == given).map(Some)
        };
        let user = password.as_ref().map_or(Some(None), |(name, given)| known(name, given));
        let anybody = self.users.iter().find(|user| user.name.is_empty());
        let access = |scope: &String| {
            let (kind, rest) = scope.split_once(':')?;
            let (name, actions) = rest.rsplit_once(':')?;
            let may = user.flatten().into_iter().chain(anybody).any(|user| user.repositories.contains(&name));
            may.then(|| json!({ "type": kind, "name": name, "actions": actions.split(',').collect::<Vec<_>>() }))
        };
        let token = user.map(|user| {
            let access = scopes.iter().filter_map(access).collect::<Vec<_>>();
            self.sign(user.map_or("", |user| user.name), &access)
        });
        let user = password.map(|(name, _)| name);
        let asked = Asked { method: method.to_owned(), user, scopes, given: token.is_some() };
        self.asked.lock().unwrap_or_else(PoisonError::into_inner).push(asked);
        token
    }

    /// A JSON Web Token of the form docker-registry takes (distribution, "Token Authentication Implementation").
    fn sign(&self, subject: &str, access: &[Value]) -> String {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("the clock is past 1970");
        let now = i64::try_from(now.as_secs()).expect("the clock is before the sun's end");
        let lifetime_s = *self.lifetime_s.lock().unwrap_or_else(PoisonError::into_inner);
        let end = now + lifetime_s - LEEWAY_S;
        let header = json!({ "typ": "JWT", "alg": "ES256", "x5c": [self.certificate] });
        let claims = json!({
            "iss": ISSUER, "sub": subject, "aud": SERVICE, "exp": end, "nbf": now - LEEWAY_S, "iat": now, "jti": "1",
            "access": access,
        });
        let signed = [header, claims].map(|part| URL_SAFE_NO_PAD.encode(part.to_string())).join(".");
        let signature = self.key.sign(&SystemRandom::new(), signed.as_bytes()).expect("a P-256 key signs anything");
        format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
    }
}

async fn serve(listener: TcpListener, shared: Arc<Shared>) {
    let listener = tokio::net::TcpListener::from_std(listener).expect("the runtime has a driver");
    while let Ok((stream, _)) = listener.accept().await {
        let shared = Arc::clone(&shared);
        let service = service_fn(move |request| {
            let shared = Arc::clone(&shared);
            async move { answer(&shared, request).await }
        });
        tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
    }
}

async fn answer(shared: &Shared, request: Request<Incoming>) -> hyper::Result<Response<Full<Bytes>>> {
    let method = request.method().to_string();
    let basic = request.headers().get(AUTHORIZATION).and_then(|value| value.to_str().ok()).and_then(basic);
    let fields = match request.uri().query() {
        Some(query) => form(query),
        None => form(&String::from_utf8_lossy(&request.into_body().collect().await?.to_bytes())),
    };
    let field = |name: &str| fields.iter().find(|(key, _)| key == name).map(|(_, value)| value.clone());
    let posted = field("username").zip(field("password"));
    let scopes = fields.iter().filter(|(key, _)| key == "scope").flat_map(|(_, value)| value.split(' '));
    let scopes = scopes.map(str::to_owned).collect();
    let (status, body) = match shared.grant(&method, posted.or(basic), scopes) {
        Some(token) => {
            (StatusCode::OK, json!({ "token": token, "access_token": token, "expires_in": TOLD_LIFETIME_S }))
        }
        None => {
            let error = json!({ "code": "UNAUTHORIZED", "message": "user or password is wrong" });
            (StatusCode::UNAUTHORIZED, json!({ "errors": [error] }))
        }
    };
    let mut response = Response::new(Full::from(body.to_string()));
    *response.status_mut() = status;
    Ok(response)
}

fn basic(authorization: &str) -> Option<(String, String)> {
    let decoded = STANDARD.decode(authorization.strip_prefix("Basic ")?).ok()?;
    let (user, password) = std::str::from_utf8(&decoded).ok()?.split_once(':')?;
    Some((user.to_owned(), password.to_owned()))
}

/// The fields of a query or a form.
fn form(text: &str) -> Vec<(String, String)> {
    let pairs = text.split('&').filter_map(|pair| pair.split_once('='));
    pairs.map(|(name, value)| (name.to_owned(), unescaped(value))).collect()
}

fn unescaped(text: &str) -> String {
    let mut parts = text.split('%');
    let mut out = parts.next().unwrap_or_default().replace('+', " ").into_bytes();
    for part in parts {
        let (hex, rest) = part.split_at_checked(2).unwrap_or(("", part));
        out.extend(u8::from_str_radix(hex, 16));
        out.extend(rest.replace('+', " ").into_bytes());
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_of_forms_are_decoded() {
        let expected = [("scope", "repository:a/b:pull,push x"), ("password", "p+w%")];
        let expected = expected.map(|(name, value)| (name.to_owned(), value.to_owned()));
        assert_eq!(form("scope=repository%3Aa%2Fb%3Apull,push+x&password=p%2Bw%25"), expected);
        assert_eq!(basic("Basic YW5uOnA6dw=="), Some(("ann".to_owned(), "p:w".to_owned())));
    }
}
