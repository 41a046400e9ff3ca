//! The live page's files. What it shows, and does, is tested in a browser: `tests/interop/page`.

use super::access::with_token;
use crate::wire::http;

/// The files hold no secret; what they show needs the token.
#[tokio::test]
async fn the_page_is_served_without_a_token_and_under_its_policy() {
    let (rig, _folder) = with_token().await;
    let get = async |path: &str, lines: &str| http(rig.admin, &format!("GET {path} HTTP/1.1{lines}"), "").await;
    let page = get("/", "").await;
    assert_eq!((page.status, page.header("x-frame-options")), (200, Some("DENY")));
    assert!(page.body.starts_with("<!doctype html>"), "{}", page.body);
    let policy = page.header("content-security-policy").unwrap();
    let client_port = format!(" ws://localhost:{};", rig.address.port());
    assert!(
        policy.starts_with("default-src 'self'; ") && policy.contains(&client_port),
        "{policy}"
    );
    assert!(policy.contains("frame-ancestors 'none'"), "{policy}");
    let mut files = page.body.split(['"', '\'']).filter(|part| part.starts_with("page/"));
    assert!(files.clone().count() >= 3);
    let script = files.find(|file| file.ends_with(".js")).unwrap();
    let script = get(&format!("/{script}"), "").await;
    assert_eq!(
        (script.status, script.header("x-content-type-options")),
        (200, Some("nosniff"))
    );
    let known = format!("\r\nIf-None-Match: {}", script.header("etag").unwrap());
    assert_eq!(get("/page/main.js", &known).await.status, 304);
    for absent in ["/page/", "/page/none.js", "/page/..%2faccess.rs"] {
        assert_eq!(get(absent, "").await.status, 404, "{absent}");
    }
    assert_eq!(get("/", "\r\nOrigin: http://evil.example").await.status, 403);
    assert_eq!(get("/session", "").await.status, 401);
}
