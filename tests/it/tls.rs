//! `wss://` and `https://` on both sides: to clients, and to nodes.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use headwater::tls::trust;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use serde_json::json;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::harness::{Client, Proxy, Rig, adopted, eventually, node, node_with_logs_of};

/// A self-signed authority, and certificates that it signed, as files.
pub struct Authority {
    folder: TempDir,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    pub fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let certificate = params.self_signed(&key).unwrap();
        std::fs::write(folder.path().join("ca.pem"), certificate.pem()).unwrap();
        let issuer = Issuer::new(params, key);
        Self { folder, issuer }
    }

    fn ca(&self) -> PathBuf {
        self.folder.path().join("ca.pem")
    }

    fn path(&self, name: &str) -> String {
        self.folder.path().join(name).to_str().unwrap().to_owned()
    }

    /// Writes `NAME.pem` and `NAME.key`.
    fn sign(&self, name: &str) {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec!["localhost".to_owned(), "127.0.0.1".to_owned()]).unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        std::fs::write(self.path(&format!("{name}.pem")), certificate.pem()).unwrap();
        std::fs::write(self.path(&format!("{name}.key")), key.serialize_pem()).unwrap();
    }

    /// Returns a client configuration that trusts this authority, and presents the certificate `shows` if given.
    pub fn client(&self, shows: Option<&str>) -> Arc<ClientConfig> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(self.ca()).unwrap()).unwrap();
        let builder = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots);
        Arc::new(match shows {
            None => builder.with_no_client_auth(),
            Some(name) => {
                let certificate = CertificateDer::from_pem_file(self.path(&format!("{name}.pem"))).unwrap();
                let key = PrivateKeyDer::from_pem_file(self.path(&format!("{name}.key"))).unwrap();
                builder.with_client_auth_cert(vec![certificate], key).unwrap()
            }
        })
    }

    /// Starts a rig whose clients connect over TLS.
    pub async fn rig(&self, edit: impl FnOnce(&mut headwater::config::typed::Config)) -> Rig {
        self.before(node().await, edit).await
    }

    async fn before(
        &self,
        node: headwater::devnet::Devnet,
        edit: impl FnOnce(&mut headwater::config::typed::Config),
    ) -> Rig {
        self.sign("server");
        let proxy = Proxy::start(&[node.ws_url()], |config| {
            config.tls.certificate = self.path("server.pem");
            config.tls.key = self.path("server.key");
            edit(config);
        })
        .await;
        proxy.ready().await;
        let control = node.handle();
        Rig { node, control, proxy }
    }
}

pub async fn handshake(proxy: &Proxy, config: Arc<ClientConfig>) -> std::io::Result<TlsStream<TcpStream>> {
    let tcp = TcpStream::connect(proxy.address).await?;
    let name = ServerName::try_from("localhost").unwrap();
    TlsConnector::from(config).connect(name, tcp).await
}

fn shown(stream: &TlsStream<TcpStream>) -> Vec<u8> {
    stream.get_ref().1.peer_certificates().unwrap()[0].to_vec()
}

fn in_file(path: &str) -> Vec<u8> {
    CertificateDer::from_pem_file(Path::new(path)).unwrap().to_vec()
}

#[tokio::test]
async fn clients_over_tls_are_told_what_others_are() {
    let authority = Authority::new();
    let rig = authority.rig(|_| {}).await;
    let url = format!("wss://{}", rig.proxy.address);
    let mut client = Client::secured(&url, authority.client(None)).await;
    client.call("eth_chainId", json!([])).await;
    client.subscribe(json!(["newHeads"])).await;
    client.subscribe(json!(["logs", {}])).await;
    let blocks = rig.control.mine_many(40);
    client.expect(adopted(&blocks)).await;
    // HTTP on the same port.
    let mut stream = handshake(&rig.proxy, authority.client(None)).await.unwrap();
    let body = json!({"jsonrpc": "2.0", "id": 1, "method": "eth_chainId"}).to_string();
    let request = format!(
        "POST / HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(
        answer.starts_with("HTTP/1.1 200") && answer.contains(r#""result":"0x539""#),
        "{answer}"
    );
    // A client without TLS is refused, and counted.
    let mut plain = TcpStream::connect(rig.proxy.address).await.unwrap();
    plain
        .write_all(b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n")
        .await
        .unwrap();
    let mut rest = Vec::new();
    drop(plain.read_to_end(&mut rest).await);
    assert!(!rest.starts_with(b"HTTP"));
    assert_eq!(rig.proxy.metric("headwater_refused_total{reason=\"tls\"}").await, 1.0);
    let blocks = rig.control.mine_many(1);
    client.expect(adopted(&blocks)).await;
}

#[tokio::test]
async fn a_slow_reader_over_tls_gets_everything_and_one_that_never_reads_is_cut_off() {
    let authority = Authority::new();
    let node = node_with_logs_of(40_000).await;
    let rig = authority
        .before(node, |config| {
            config.delivery.max_queue_bytes = bytesize::ByteSize::mib(64);
            config.delivery.write_deadline = Duration::from_secs(4);
        })
        .await;
    let url = format!("wss://{}", rig.proxy.address);
    let mut slow = Client::secured(&url, authority.client(None)).await;
    slow.subscribe(json!(["logs", {}])).await;
    let mut stuck = Client::secured(&url, authority.client(None)).await;
    stuck.subscribe(json!(["logs", {}])).await;
    let blocks = rig.control.mine_many(60);
    let story: Vec<String> = adopted(&blocks)
        .into_iter()
        .filter(|line| line.starts_with("log"))
        .collect();
    for (i, part) in story.chunks(40).enumerate() {
        slow.expect(part.to_vec()).await;
        if i < 4 {
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
    }
    eventually("the other one is cut off", async || {
        rig.proxy
            .metric("headwater_closes_total{reason=\"write_deadline\"}")
            .await
            == 1.0
    })
    .await;
    drop(stuck);
}

#[tokio::test]
async fn clients_without_a_certificate_are_refused_where_one_is_asked_for() {
    let authority = Authority::new();
    authority.sign("client");
    let stranger = Authority::new();
    stranger.sign("client");
    let ca = authority.path("ca.pem");
    let rig = authority.rig(|config| config.tls.client_ca = ca).await;
    let url = format!("wss://{}", rig.proxy.address);
    let mut client = Client::secured(&url, authority.client(Some("client"))).await;
    assert_eq!(client.call("eth_chainId", json!([])).await["result"], "0x539");
    for refused in [authority.client(None), {
        let shows = CertificateDer::from_pem_file(stranger.path("client.pem")).unwrap();
        let key = PrivateKeyDer::from_pem_file(stranger.path("client.key")).unwrap();
        let mut roots = RootCertStore::empty();
        roots
            .add(CertificateDer::from_pem_file(authority.ca()).unwrap())
            .unwrap();
        let builder = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()));
        let builder = builder.with_safe_default_protocol_versions().unwrap();
        Arc::new(
            builder
                .with_root_certificates(roots)
                .with_client_auth_cert(vec![shows], key)
                .unwrap(),
        )
    }] {
        // In TLS 1.3 the client's handshake ends before the server has verified the client's certificate.
        let Ok(mut stream) = handshake(&rig.proxy, refused).await else {
            continue;
        };
        let mut answer = Vec::new();
        assert!(stream.read_to_end(&mut answer).await.is_err(), "an alert");
    }
    assert_eq!(rig.proxy.metric("headwater_refused_total{reason=\"tls\"}").await, 2.0);
}

#[tokio::test]
async fn a_renewed_certificate_is_shown_and_nobody_is_dropped() {
    let authority = Authority::new();
    authority.sign("server");
    let file = authority.path("headwater.toml");
    let (certificate, key) = (authority.path("server.pem"), authority.path("server.key"));
    std::fs::write(&file, format!("[tls]\ncertificate = {certificate:?}\nkey = {key:?}\n")).unwrap();
    let node = node().await;
    let control = node.handle();
    let proxy = Proxy::from_file(Path::new(&file), &[node.ws_url()]).await;
    proxy.ready().await;
    let reloads = async |outcome: &str| {
        let metric = format!("headwater_config_reloads_total{{outcome=\"{outcome}\"}}");
        proxy.metric(&metric).await
    };
    let mut client = Client::secured(&format!("wss://{}", proxy.address), authority.client(None)).await;
    client.subscribe(json!(["newHeads"])).await;
    let shows = async || shown(&handshake(&proxy, authority.client(None)).await.unwrap());
    let first = in_file(&certificate);
    assert_eq!(shows().await, first);
    // Half of a renewal: a certificate that does not match the key.
    let before = std::fs::read(&key).unwrap();
    authority.sign("server");
    let renewed = std::fs::read(&key).unwrap();
    std::fs::write(&key, &before).unwrap();
    eventually("it is refused", async || reloads("refused").await == 1.0).await;
    assert_eq!(shows().await, first);
    std::fs::write(&key, &renewed).unwrap();
    eventually("it is shown", async || reloads("applied").await == 1.0).await;
    let second = in_file(&certificate);
    assert_ne!(first, second);
    assert_eq!(shows().await, second);
    let block = control.mine();
    assert!(adopted(&[block]).contains(&client.line().await));
}

#[tokio::test]
async fn a_node_behind_tls_is_believed_where_its_authority_is() {
    let authority = Authority::new();
    let rig = authority.rig(|_| {}).await;
    for scheme in ["wss", "https"] {
        let url = format!("{scheme}://{}", rig.proxy.address);
        let refused = Proxy::start(std::slice::from_ref(&url), |_| {}).await;
        eventually("it is refused", async || {
            let status = refused.admin("/status").await.body;
            status.contains("UnknownIssuer") || status.contains("invalid peer certificate")
        })
        .await;
        let ca = authority.path("ca.pem");
        let proxy = Proxy::start(&[url], |config| {
            config.node.ca = ca;
            config.node.poll_interval = Duration::from_millis(50);
        })
        .await;
        proxy.ready().await;
        let mut client = proxy.client().await;
        client.subscribe(json!(["newHeads"])).await;
        let block = rig.control.mine();
        assert!(adopted(&[block]).contains(&client.line().await));
    }
}

#[test]
fn files_that_cannot_be_used_are_named() {
    let missing = trust(Some(Path::new("/nowhere/ca.pem"))).unwrap_err().to_string();
    assert!(missing.starts_with("/nowhere/ca.pem: "), "{missing}");
    let authority = Authority::new();
    authority.sign("one");
    authority.sign("other");
    let check = |certificate: &str, key: &str| {
        let mut config = headwater::config::typed::Config::default();
        config.tls.certificate = certificate.to_owned();
        config.tls.key = key.to_owned();
        headwater::config::Config::check(&config)
            .map(drop)
            .map_err(|why| why.to_string())
    };
    assert_eq!(check("", ""), Ok(()));
    assert_eq!(check(&authority.path("one.pem"), &authority.path("one.key")), Ok(()));
    for (certificate, key, words) in [
        (authority.path("one.pem"), String::new(), "tls.key: must be set"),
        (String::new(), authority.path("one.key"), "tls.certificate: must be set"),
        (authority.path("none.pem"), authority.path("one.key"), "none.pem: "),
        (
            authority.path("one.key"),
            authority.path("one.key"),
            "contains no certificate",
        ),
        (authority.path("one.pem"), authority.path("one.pem"), "one.pem: "),
        (authority.path("one.pem"), authority.path("other.key"), "one.pem: "),
    ] {
        let why = check(&certificate, &key).unwrap_err();
        assert!(why.contains(words) && !why.contains('\n'), "{why}");
    }
}
