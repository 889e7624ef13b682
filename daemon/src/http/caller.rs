//! The caller of a request on the control socket, as the kernel knows it (`SO_PEERCRED`). Root may
//! do everything. Another user, which reaches the socket through the group [`GROUP`], may ask what
//! the table of operations lists for the group, which is reading only; and manage the VMs that are
//! for it, if root has said which user the account is (`p2pvm user add --uid`).

use super::rate::{Buckets, Rate};
use axum::{
    Router,
    extract::{
        ConnectInfo, Request, State,
        connect_info::{Connected, IntoMakeServiceWithConnectInfo},
    },
    http::{HeaderValue, Method, StatusCode, Uri, header},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    serve::IncomingStream,
};
use futures::future::BoxFuture;
use p2pvm_api::{
    Failure, Kind,
    operations::{Asker, OPERATIONS},
};
use std::{sync::Arc, time::Duration};
use tokio::net::UnixListener;

/// The group whose members may use the control socket.
pub(crate) const GROUP: &str = "p2pvm";
/// The requests of one user. Reason: some of them ask every member of the network.
const REQUESTS: Rate = Rate::new(40, Duration::from_millis(100));
/// The requests of all users that ask every member of the network.
pub(crate) const WIDE: Rate = Rate::new(10, Duration::from_secs(1));
/// How many users have buckets of their own.
const MOST_USERS: usize = 64;

/// The user at the other end of a connection; none if the kernel does not say.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Caller(Option<u32>);

impl Connected<IncomingStream<'_, UnixListener>> for Caller {
    fn connect_info(stream: IncomingStream<'_, UnixListener>) -> Self {
        Self(stream.io().peer_cred().ok().map(|known| known.uid()))
    }
}

/// The control API for the callers of a unix socket.
pub(crate) fn for_callers(
    routes: Router,
    owns: Owns,
) -> IntoMakeServiceWithConnectInfo<Router, Caller> {
    judged(routes, owns).into_make_service_with_connect_info()
}

/// Whether the VM of that name is for the user whose account has that number.
pub(crate) type Owns = Arc<dyn Fn(u32, String) -> BoxFuture<'static, bool> + Send + Sync>;

/// What the user of a VM may ask about it on the machine of its account, beside looking.
const OWN: &[(&str, &str)] = &[
    ("POST", "/vms/{name}/start"),
    ("POST", "/vms/{name}/stop"),
    ("GET", "/vms/{name}/console"),
    ("POST", "/vms/{name}/migrate"),
    ("DELETE", "/vms/{name}/migrate"),
    ("POST", "/vms/{name}/snapshot"),
    ("POST", "/vms/{name}/restore"),
    ("DELETE", "/vms/{name}"),
];

/// The VM that a request is about which its user may make.
fn own_vm<'r>(method: &Method, path: &'r str) -> Option<&'r str> {
    let path = path.strip_prefix("/v1").unwrap_or(path);
    let listed = |(of, pattern): &&(&str, &str)| *of == method.as_str() && is_of(pattern, path);
    OWN.iter().find(listed)?;
    // Not decoded: a name with an escape is no VM's.
    path.split('/').nth(2)
}

/// The limits of users other than root.
struct Limits {
    requests: Buckets<Option<u32>>,
    wide: Buckets<()>,
    owns: Owns,
}

fn judged(routes: Router, owns: Owns) -> Router {
    let limits = Limits {
        requests: Buckets::new(REQUESTS, MOST_USERS),
        wide: Buckets::new(WIDE, 1),
        owns,
    };
    routes.layer(middleware::from_fn_with_state(Arc::new(limits), judge))
}

/// Passes what the caller may ask.
async fn judge(
    State(limits): State<Arc<Limits>>,
    ConnectInfo(Caller(uid)): ConnectInfo<Caller>,
    request: Request,
    next: Next,
) -> Response {
    if uid == Some(0) {
        return next.run(request).await;
    }
    let (method, path) = (request.method(), request.uri().path());
    let is_listed = is_listed(Asker::Group, method, path);
    let vm = own_vm(method, path).map(str::to_owned);
    if !is_listed && vm.is_none() {
        return only_root();
    }
    if let Err(wait) = limits.requests.take(uid) {
        return too_often("too many requests of one user", wait);
    }
    if is_wide(request.uri())
        && let Err(wait) = limits.wide.take(())
    {
        return too_often("too many questions to all members", wait);
    }
    if !is_listed {
        let owns = match (uid, vm) {
            (Some(uid), Some(vm)) => (limits.owns)(uid, vm).await,
            _ => false,
        };
        if !owns {
            return only_root();
        }
    }
    next.run(request).await
}

/// The answer to a user that may not ask this.
fn only_root() -> Response {
    let why = format!(
        "only root may do this; members of the group {GROUP} may look, and manage VMs that are \
            for them ('p2pvm vm create --for'): run this as root"
    );
    (StatusCode::FORBIDDEN, axum::Json(Failure::refused(why))).into_response()
}

/// The answer to a caller that asks too often.
pub(crate) fn too_often(what: &str, wait: Duration) -> Response {
    let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
    let why = format!("{what}: try again in {seconds} s");
    let failure = axum::Json(Failure::new(Kind::NotNow, why));
    let mut answer = (StatusCode::TOO_MANY_REQUESTS, failure).into_response();
    let headers = answer.headers_mut();
    headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
    answer
}

/// Whether the answer to a request takes a question to every member.
pub(crate) fn is_wide(uri: &Uri) -> bool {
    let path = uri.path().strip_prefix("/v1").unwrap_or(uri.path());
    // Whatever the scope's letters look like.
    let of_cluster = || uri.query().is_some_and(|query| query != "json=true");
    path.starts_with("/cluster")
        || path.ends_with("/explain")
        || (path == "/metrics" && of_cluster())
}

/// Whether the table lists the request for a kind of caller.
pub(crate) fn is_listed(asker: Asker, method: &Method, path: &str) -> bool {
    let path = path.strip_prefix("/v1").unwrap_or(path);
    if method == Method::GET && path == "/openapi.json" {
        return true;
    }
    OPERATIONS.iter().copied().flatten().any(|operation| {
        operation.askers.contains(&asker)
            && operation.method.word() == method.as_str()
            && is_of(operation.path, path)
    })
}

/// Whether a path is one of a pattern, whose segments in braces stand for any.
fn is_of(pattern: &str, path: &str) -> bool {
    let (mut wanted, mut given) = (pattern.split('/'), path.split('/'));
    loop {
        match (wanted.next(), given.next()) {
            (None, None) => return true,
            (Some(w), Some(g)) if w == g || (w.starts_with('{') && !g.is_empty()) => {}
            _ => return false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wiring::alone::{Alone, Answered, send};
    use axum::{Extension, body::Body};

    async fn ask(alone: &Alone, uid: Option<u32>, method: &str, path: &str) -> Answered {
        let owns: Owns =
            Arc::new(|uid, vm| Box::pin(async move { (uid, vm.as_str()) == (1001, "web") }));
        let routes = judged(alone.services.routes(), owns);
        let request = Request::builder().method(method).uri(path);
        let request = request.header("content-type", "application/json");
        let known = Extension(ConnectInfo(Caller(uid)));
        send(routes.layer(known), request.body(Body::from("{}")).unwrap()).await
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn the_group_looks_and_only_root_changes_something() {
        let alone = Alone::start().await;
        for path in ["/status", "/v1/status", "/vms", "/findings", "/v1/acl"] {
            let answer = ask(&alone, Some(1000), "GET", path).await;
            assert_eq!(answer.status, StatusCode::OK, "{path}: {}", answer.text);
        }
        for (method, path) in [
            ("POST", "/v1/vms"),
            ("POST", "/findings"),
            ("POST", "/vms/web/start"),
            ("GET", "/vms/web/console"),
            ("GET", "/dashboard"),
            ("GET", "/tokens"),
            ("GET", "/v1/v1/status"),
            ("POST", "/dashboard"),
            ("POST", "/invite"),
            ("DELETE", "/vms/web"),
            ("HEAD", "/dashboard"),
        ] {
            for uid in [Some(1000), None] {
                let answer = ask(&alone, uid, method, path).await;
                assert_eq!(answer.status, StatusCode::FORBIDDEN, "{method} {path}");
            }
        }
        let answer = ask(&alone, Some(0), "GET", "/dashboard").await;
        assert_eq!(answer.status, StatusCode::OK);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_user_manages_its_own_vms_and_no_others() {
        let alone = Alone::start().await;
        for (uid, method, path, may) in [
            (1001, "POST", "/vms/web/start", true),
            (1001, "POST", "/v1/vms/web/stop", true),
            (1001, "DELETE", "/vms/web", true),
            (1001, "POST", "/vms/db/start", false),
            (1001, "POST", "/vms/%77eb/start", false),
            (1001, "POST", "/vms", false),
            (1001, "POST", "/vms/web/rename", false),
            (1000, "POST", "/vms/web/start", false),
        ] {
            let answer = ask(&alone, Some(uid), method, path).await;
            let refused = answer.status == StatusCode::FORBIDDEN;
            assert_eq!(!refused, may, "{uid} {method} {path}: {}", answer.text);
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_user_that_asks_too_often_waits_and_root_does_not() {
        let alone = Alone::start().await;
        let owns: Owns = Arc::new(|_, _| Box::pin(async { false }));
        let routes = judged(alone.services.routes(), owns);
        let mut counts = [0; 2];
        for _ in 0..100 {
            for (n, uid) in [(0, Some(0)), (1, Some(1000))] {
                let known = Extension(ConnectInfo(Caller(uid)));
                let request = Request::get("/v1/openapi.json").body(Body::empty());
                let answer = send(routes.clone().layer(known), request.unwrap()).await;
                counts[n] += usize::from(answer.status == StatusCode::OK);
            }
        }
        assert_eq!(counts[0], 100);
        assert!((40..100).contains(&counts[1]), "{counts:?}");
    }

    #[test]
    fn a_question_to_all_members_is_known_by_its_path() {
        for (uri, is) in [
            ("/cluster", true),
            ("/v1/cluster/vms", true),
            ("/vms/web/explain", true),
            ("/metrics?json=true&scope=cluster", true),
            ("/metrics?scope=%63luster", true),
            ("/metrics?json=true", false),
            ("/metrics", false),
            ("/vms", false),
        ] {
            assert_eq!(is_wide(&Uri::from_static(uri)), is, "{uri}");
        }
    }

    #[test]
    fn a_pattern_has_as_many_segments_as_its_paths() {
        for (path, is) in [
            ("/vms/web", true),
            ("/vms/", false),
            ("/vms", false),
            ("/vms/web/start", false),
            ("vms/web", false),
        ] {
            assert_eq!(is_of("/vms/{name}", path), is, "{path}");
        }
    }
}
