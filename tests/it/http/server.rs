//! An HTTP server on the loopback interface, and its clients.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::pin::pin;
use std::process::Command;
use std::thread;
use std::time::Duration;

use axum::Router;
use axum::routing::any;
use futures_util::future::select;
use http::{HeaderMap, Method};
use keyward::Grant;
use keyward::web::KeywardLayer;
use tokio::runtime::Runtime;
use tokio::sync::oneshot;

/// A server that runs until it is dropped.
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    runtime: Runtime,
    client: reqwest::Client,
    _stop: oneshot::Sender<()>,
}

/// A response.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) body: String,
}

/// Returns the grant's key and tenant as text.
async fn whose(grant: Grant) -> String {
    format!("{} of {}", grant.key_id(), grant.tenant())
}

/// Returns a router that calls `whose` for every path and method, behind `layer`.
pub(crate) fn everywhere(layer: KeywardLayer) -> Router {
    Router::new().fallback(any(whose)).layer(layer)
}

fn runtime() -> Runtime {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    builder.enable_all().build().unwrap()
}

pub(crate) fn client() -> reqwest::Client {
    reqwest::Client::builder().no_proxy().build().unwrap()
}

impl Server {
    pub(crate) fn start(app: Router) -> Self {
        let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = oneshot::channel();
        thread::spawn(move || {
            runtime().block_on(async {
                let listener = tokio::net::TcpListener::from_std(listener).unwrap();
                let app = app.into_make_service_with_connect_info::<SocketAddr>();
                let serving = async { axum::serve(listener, app).await.unwrap() };
                let serving = pin!(serving);
                select(serving, stopped).await;
            });
        });
        Self {
            address,
            runtime: runtime(),
            client: client(),
            _stop: stop,
        }
    }

    /// Starts a server with the router of `everywhere`.
    pub(crate) fn with(layer: KeywardLayer) -> Self {
        Self::start(everywhere(layer))
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    pub(crate) fn ask(&self, method: Method, path: &str, headers: &[(&str, &str)]) -> Answer {
        let mut request = self.client.request(method, self.url(path));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        self.runtime.block_on(answer(request))
    }

    pub(crate) fn get(&self, path: &str, headers: &[(&str, &str)]) -> Answer {
        self.ask(Method::GET, path, headers)
    }

    /// Sends a GET request with a bearer token.
    pub(crate) fn bearer(&self, path: &str, key: &str) -> Answer {
        self.get(path, &[("authorization", &format!("Bearer {key}"))])
    }

    /// Opens a TCP connection with a long read timeout.
    pub(crate) fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).unwrap();
        let patience = Some(Duration::from_secs(60));
        stream.set_read_timeout(patience).unwrap();
        stream
    }

    /// Sends raw bytes, and reads until the server closes the connection.
    pub(crate) fn raw(&self, request: &[u8]) -> String {
        let mut stream = self.connect();
        stream.write_all(request).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    /// Sends a request with curl. Returns status line, headers and body unchanged.
    pub(crate) fn curl(&self, arguments: &[&str], path: &str) -> String {
        let mut curl = Command::new("curl");
        curl.args(["--silent", "--show-error", "--noproxy", "*", "--include"]);
        curl.args(arguments).arg(self.url(path));
        let output = curl.output().expect("curl is installed");
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    }
}

pub(crate) async fn answer(request: reqwest::RequestBuilder) -> Answer {
    let response = request.send().await.unwrap();
    let (status, headers) = (response.status().as_u16(), response.headers().clone());
    let body = response.text().await.unwrap();
    Answer {
        status,
        headers,
        body,
    }
}

impl Answer {
    /// Returns all values of a header as one text, separated by ` | `.
    pub(crate) fn header(&self, name: &str) -> String {
        let values = self.headers.get_all(name).iter();
        let values: Vec<_> = values.map(|value| value.to_str().unwrap()).collect();
        values.join(" | ")
    }

    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.body).unwrap()
    }

    /// Returns the last part of the problem's type URI, such as `invalid-key`.
    pub(crate) fn code(&self) -> String {
        assert_eq!(self.header("content-type"), "application/problem+json");
        let problem = self.json();
        let code = problem["type"].as_str().unwrap();
        code.strip_prefix("urn:problem-type:keyward:")
            .unwrap()
            .to_owned()
    }

    /// Returns the status, the headers and the body. Leaves out the date, which differs between answers.
    pub(crate) fn all_but_date(&self) -> String {
        let mut headers = self.headers.clone();
        headers.remove("date");
        format!("{} {headers:?} {}", self.status, self.body)
    }
}

/// Returns the `Authorization` header for a user name and a password.
pub(crate) fn basic(user: &str, password: &str) -> String {
    format!("Basic {}", base64(&format!("{user}:{password}")))
}

/// Encodes a text by hand, so that the library is not tested against itself.
pub(crate) fn base64(text: &str) -> String {
    use std::fmt::Write as _;

    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut encoded = String::new();
    for three in text.as_bytes().chunks(3) {
        let byte = |at: usize| u32::from(three.get(at).copied().unwrap_or(0));
        let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
        for digit in 0..4 {
            let at = (bits >> (18 - 6 * digit)) as usize % 64;
            let digit = if digit > three.len() {
                '='
            } else {
                char::from(DIGITS[at])
            };
            write!(encoded, "{digit}").unwrap();
        }
    }
    encoded
}
