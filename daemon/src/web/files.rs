//! The page's files, built into the program. They are the same for everybody and contain no secret,
//! so they need no token.

use axum::{
    body::Body,
    http::{HeaderValue, Method, StatusCode, Uri, header},
    response::{IntoResponse, Response},
};

include!(concat!(env!("OUT_DIR"), "/dashboard_files.rs"));

/// The page of a program without the built-in front end.
const WITHOUT: &str = "<!doctype html><html lang=\"en\"><meta \
    charset=\"utf-8\"><title>p2pvm</title>\
    <h1>This p2pvm was built without its dashboard</h1>\
    <p>Build it with <code>make web &amp;&amp; make build</code> (needs Node 20 or newer), or \
    install the Debian package, which has it.</p>\
    <p>Until then <code>p2pvm top</code> shows the same on a terminal.</p></html>";

/// Whether the page was built in.
pub fn built() -> bool {
    !FILES.is_empty()
}

fn kind_of(path: &str) -> &'static str {
    match path.rsplit('.').next() {
        Some("html") => "text/html; charset=utf-8",
        Some("js") => "text/javascript; charset=utf-8",
        Some("css") => "text/css; charset=utf-8",
        Some("svg") => "image/svg+xml",
        _ => "application/octet-stream",
    }
}

/// Answers with one of the files.
pub async fn serve(method: Method, uri: Uri) -> Response {
    if method != Method::GET && method != Method::HEAD {
        return StatusCode::METHOD_NOT_ALLOWED.into_response();
    }
    let path = match uri.path().trim_start_matches('/') {
        "" => "index.html",
        path => path,
    };
    let found = FILES
        .iter()
        .find(|(name, _)| *name == path)
        .map(|(_, bytes)| *bytes);
    let (kind, bytes) = match found {
        Some(bytes) => (kind_of(path), bytes),
        None if path == "index.html" => (kind_of(path), WITHOUT.as_bytes()),
        None => return (StatusCode::NOT_FOUND, "no such file\n").into_response(),
    };
    let mut answer = Body::from(bytes).into_response();
    let headers = answer.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    if path.starts_with("assets/") {
        // Each name contains the hash of the file's content.
        headers.insert(
            header::CACHE_CONTROL,
            HeaderValue::from_static("public, max-age=31536000, immutable"),
        );
    }
    answer
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_page_is_there_built_or_not_and_nothing_outside_it_is() {
        let get = |path: &'static str| serve(Method::GET, Uri::from_static(path));
        let page = get("/").await;
        assert_eq!(page.status(), StatusCode::OK);
        assert_eq!(
            page.headers()[header::CONTENT_TYPE],
            "text/html; charset=utf-8"
        );
        for path in [
            "/../node.toml",
            "/assets/../index.html",
            "/assets/",
            "/.gitignore",
            "//etc/passwd",
            "/%2e%2e/x",
        ] {
            assert_eq!(get(path).await.status(), StatusCode::NOT_FOUND, "{path}");
        }
        assert_eq!(
            serve(Method::POST, Uri::from_static("/")).await.status(),
            StatusCode::METHOD_NOT_ALLOWED
        );
        // The page's policy allows no inline script, and nothing from elsewhere.
        let html = FILES
            .iter()
            .find(|(name, _)| *name == "index.html")
            .map(|(_, bytes)| String::from_utf8_lossy(bytes).into_owned());
        for tag in html
            .iter()
            .flat_map(|html| html.split('<'))
            .filter(|tag| tag.starts_with("script") || tag.starts_with("link"))
        {
            assert!(tag.contains("=\"./assets/"), "{tag}");
        }
    }
}
