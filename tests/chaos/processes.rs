//! The processes of a tree: two roots before a node, three edges behind both roots, and links between them.

use std::path::Path;
use std::sync::Arc;

use headwater::door::ApiKey;

use crate::link::Link;
use crate::proxy::Proxy;

pub struct Processes {
    /// Link of each root to the node.
    pub node_links: Vec<Arc<Link>>,
    pub roots: Vec<Arc<Proxy>>,
    /// Links of the first edge to each root, then those of the second.
    pub links: Vec<Arc<Link>>,
    pub edges: Vec<Arc<Proxy>>,
}

impl Processes {
    /// Starts them before the node at this port, with `more` in the configuration of each.
    pub async fn start(directory: &Path, node: u16, edges: &[&str], more: &str) -> Self {
        let key = ApiKey::random();
        let secret = directory.join("secret");
        std::fs::write(&secret, "0123456789abcdef0123456789abcdef").unwrap();
        let fleet = format!("{more}[fleet]\nsecret_file = {secret:?}\n");
        let (root_file, edge_file) = (directory.join("root.toml"), directory.join("edge.toml"));
        let keys = format!("[keys.edges]\nhash = \"{}\"\nedge = true\n", key.digest());
        std::fs::write(&root_file, format!("{fleet}{keys}")).unwrap();
        std::fs::write(&edge_file, fleet).unwrap();
        let mut all = Self {
            node_links: Vec::new(),
            roots: Vec::new(),
            links: Vec::new(),
            edges: Vec::new(),
        };
        for name in ["root-a", "root-b"] {
            let link = Link::to(node).await;
            let upstream = format!("ws://127.0.0.1:{}", link.port);
            let root = Proxy::start(directory, name, &[upstream], Some(&root_file)).await;
            all.node_links.push(link);
            all.roots.push(Arc::new(root));
        }
        for name in edges {
            let mut upstreams = Vec::new();
            for root in &all.roots {
                let link = Link::to(root.port).await;
                upstreams.push(format!("ws://127.0.0.1:{}/{}", link.port, key.reveal()));
                all.links.push(link);
            }
            let edge = Proxy::start(directory, name, &upstreams, Some(&edge_file)).await;
            all.edges.push(Arc::new(edge));
        }
        all
    }
}
