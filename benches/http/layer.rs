//! Measures what the layer adds to a service, on one thread and without a socket.

use std::convert::Infallible;
use std::future::{Ready, ready};
use std::hint::black_box;
use std::net::{Ipv4Addr, SocketAddr};

use axum::extract::ConnectInfo;
use futures_util::FutureExt;
use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HOST, HeaderValue, USER_AGENT};
use http::{Request, Response, Uri};
use tower::{Layer, Service, service_fn};
use tracing::Level;

use shared::batch::Batch;
use shared::keys::{KeyKind, Keys};
use shared::served::need;
use shared::table::{Goal, Table};
use shared::turns::{Subject, cpu, ratio, take_turns};

/// The number of keys: 1,000, few enough for their slots to stay in a CPU cache.
const KEYS: u64 = 1_000;

/// The number of requests that one service answers before the next one's turn.
const BATCH: usize = 10_000;

/// The goal: the layer adds at most 1.3 times the time of a service that does nothing.
const GOAL: Goal = Goal::AtMost(1.3);

/// Measures the layer without a subscriber for logs, and then with one at INFO.
pub(crate) fn measure(rounds: usize, table: &mut Table) {
    let made = Keys::new(KeyKind::Secret, KEYS);
    let keys = pollster::block_on(super::keyward(made.clone(), KEYS));
    let nothing = service_fn(answer);
    let keyed = super::layer(&keys).layer(nothing);
    let need = need();
    let batch = || Box::new(|random: &mut _| Batch::valid(&made, KEYS, BATCH, random));
    let mut subjects = [
        Subject {
            name: "a service that does nothing".to_owned(),
            goal: None,
            batch: batch(),
            run: Box::new(|batch| serve(nothing, batch)),
        },
        Subject {
            name: "the same behind the layer".to_owned(),
            goal: None,
            batch: batch(),
            run: Box::new(|batch| serve(keyed.clone(), batch)),
        },
        Subject {
            name: "a verification".to_owned(),
            goal: None,
            batch: batch(),
            run: Box::new(|batch| {
                let verified =
                    (0..batch.len()).filter(|&at| keys.verify(batch.at(at), &need).is_ok());
                assert_eq!(verified.count(), batch.len());
            }),
        },
    ];
    for log in ["no subscriber", "a subscriber at INFO"] {
        let taken = take_turns(rounds, &mut subjects);
        let [plain, keyed, verified] = [&taken[0], &taken[1], &taken[2]];
        let note = format!(
            "{:.0} ns : {:.0} ns; a verification alone {:.0} ns",
            cpu(keyed) - cpu(plain),
            cpu(plain),
            cpu(verified)
        );
        let what = format!("what the layer adds : a service that does nothing, {KEYS} keys, {log}");
        table.add(what, ratio(keyed, plain) - 1.0, GOAL, note);
        // The level of the whole process, as in a service: a subscriber of one thread costs more.
        let subscriber = tracing_subscriber::fmt().with_max_level(Level::INFO);
        let _ =
            tracing::subscriber::set_global_default(subscriber.with_writer(std::io::sink).finish());
    }
}

/// Answers a request without looking at it.
fn answer(_: Request<()>) -> Ready<Result<Response<()>, Infallible>> {
    let mut answer = Response::new(());
    let text = HeaderValue::from_static("text/plain; charset=utf-8");
    answer.headers_mut().insert(CONTENT_TYPE, text);
    ready(Ok(answer))
}

/// Makes a request as a server does, and sends it to the service.
fn serve<S, B>(mut service: S, batch: &Batch)
where
    S: Service<Request<()>, Response = Response<B>, Error = Infallible>,
{
    let peer = SocketAddr::from((Ipv4Addr::LOCALHOST, 50_000));
    for at in 0..batch.len() {
        let mut request = Request::new(());
        *request.uri_mut() = Uri::from_static("/reports");
        let headers = request.headers_mut();
        headers.insert(HOST, HeaderValue::from_static("api.example.com"));
        headers.insert(USER_AGENT, HeaderValue::from_static("bench"));
        headers.insert(ACCEPT, HeaderValue::from_static("*/*"));
        let bearer = [&b"Bearer "[..], batch.at(at)].concat();
        headers.insert(
            AUTHORIZATION,
            HeaderValue::from_maybe_shared(bytes::Bytes::from(bearer)).unwrap(),
        );
        request.extensions_mut().insert(ConnectInfo(peer));
        let answer = service.call(request).now_or_never();
        let answer = black_box(answer.expect("the key is in the index").unwrap());
        assert!(answer.status().is_success());
    }
}
