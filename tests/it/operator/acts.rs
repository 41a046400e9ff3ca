//! Acts of operators, and what clients notice of them.

use std::time::Duration;

use headwater::devnet::{Control, Devnet};
use headwater::operator::{ClientQuery, Drain, Event, OperatorClient, UpstreamName, UpstreamState};
use serde_json::json;

use super::{event, operator, refusal};
use crate::harness::{Proxy, Rig, adopted, eventually, node};
use crate::wire::{FORWARDED, FORWARDED_ANSWER};

/// Two nodes of one chain; the first is in use.
struct Pair {
    nodes: [Devnet; 2],
    proxy: Proxy,
}

impl Pair {
    async fn start() -> Self {
        let nodes = [node().await, node().await];
        let proxy = Proxy::start(&nodes.each_ref().map(Devnet::ws_url), |_| {}).await;
        proxy.connected().await;
        proxy.settled(&nodes[0].handle()).await;
        eventually("the first is in use", async || {
            proxy.upstreams().await[0]["active"] == true
        })
        .await;
        Self { nodes, proxy }
    }

    fn controls(&self) -> [Control; 2] {
        self.nodes.each_ref().map(Devnet::handle)
    }
}

#[tokio::test]
async fn a_cordon_moves_stream_and_calls_and_a_client_loses_nothing() {
    let pair = Pair::start().await;
    let [first, second] = pair.controls();
    let api = operator(&pair.proxy).await;
    let mut events = api.subscribe_events(None).await.unwrap();
    let mut client = pair.proxy.watcher().await;
    let both = || {
        let block = first.mine();
        second.mine();
        block
    };
    client.expect(adopted(&[both()])).await;

    // Calls in flight are answered by the node that has them.
    first.set_faults(|faults| faults.delay = Some(Duration::from_millis(300)));
    second.set_faults(|faults| faults.delay = Some(Duration::from_millis(300)));
    client.send(FORWARDED).await;
    assert!(api.cordon(UpstreamName::Index(0), None).await.unwrap());
    assert!(!api.cordon(UpstreamName::Index(0), None).await.unwrap(), "already");
    assert_eq!(client.next().await, FORWARDED_ANSWER);
    for control in [&first, &second] {
        control.set_faults(|faults| faults.delay = None);
    }
    let failover = event(&mut events, |event| match event {
        Event::Failover {
            from: Some(_),
            to,
            reason,
        } => Some((to, reason)),
        _ => None,
    });
    let address = api.upstreams().await.unwrap()[1].address.clone();
    assert_eq!(failover.await, (Some(address), "cordoned".to_owned()));
    let states: Vec<_> = api.upstreams().await.unwrap().iter().map(|one| one.state).collect();
    assert_eq!(states, [UpstreamState::Cordoned, UpstreamState::Active]);
    assert_eq!(pair.proxy.upstreams().await[0]["cordoned"], true);

    // The stream goes on from the second; the first is asked nothing more.
    let asked = first.stats().calls;
    for _ in 0..3 {
        client.expect(adopted(&[second.mine()])).await;
        assert_eq!(client.ask(FORWARDED).await, FORWARDED_ANSWER);
    }
    let of = |calls: &std::collections::BTreeMap<String, u64>, method: &str| calls.get(method).copied();
    for method in ["eth_getLogs", "eth_syncing", "eth_getBlockByHash"] {
        assert_eq!(of(&first.stats().calls, method), of(&asked, method), "{method}");
    }
    // A reconnect changes nothing.
    first.disconnect();
    eventually("it is back", async || api.upstreams().await.unwrap()[0].connects == 2).await;
    assert_eq!(api.upstreams().await.unwrap()[0].state, UpstreamState::Cordoned);

    let (code, why) = refusal(api.cordon(UpstreamName::Index(1), None).await);
    assert_eq!(
        (code, &*why),
        (
            -32000,
            "no other upstream that takes calls is connected: calls would fail; set force"
        )
    );
    first.follow(&second, 0).unwrap();
    assert!(api.uncordon(UpstreamName::Index(0)).await.unwrap());
    assert!(!api.uncordon(UpstreamName::Index(0)).await.unwrap(), "already");
    assert!(api.cordon(UpstreamName::Index(1), Some(false)).await.unwrap());
    eventually("the first is in use again", async || {
        api.upstreams().await.unwrap()[0].state == UpstreamState::Active
    })
    .await;
    client.expect(adopted(&[first.mine()])).await;
    // No block came twice, no log was taken back, and the connection is the same.
    let (answer, beside) = client.ask_alone(FORWARDED).await;
    assert_eq!((&*answer, beside.len()), (FORWARDED_ANSWER, 0));
}

#[tokio::test]
async fn the_last_one_is_cordoned_by_force_only() {
    let rig = Rig::start().await;
    let api = operator(&rig).await;
    let address = UpstreamName::Address(api.upstreams().await.unwrap()[0].address.clone());
    assert_eq!(refusal(api.cordon(address.clone(), None).await).0, -32000);
    assert_eq!(refusal(api.cordon(UpstreamName::Index(1), None).await).0, -32001);
    assert_eq!(
        refusal(api.uncordon(UpstreamName::Address("ws://x".into())).await).0,
        -32001
    );
    let mut client = rig.watcher().await;
    assert!(api.cordon(address.clone(), Some(true)).await.unwrap());
    rig.unready().await;
    let missed = rig.control.mine();
    assert!(api.uncordon(address).await.unwrap());
    rig.ready().await;
    client.expect(adopted(&[missed])).await;
    rig.nothing_else(&mut client).await;
}

#[tokio::test]
async fn a_drain_is_for_balancers_first_and_closes_clients_if_asked_to() {
    let rig = Rig::start().await;
    let api = operator(&rig).await;
    let mut client = rig.watcher().await;
    assert!(api.drain(None).await.unwrap());
    assert!(!api.drain(None).await.unwrap(), "already");
    let reply = rig.admin("/ready").await;
    assert_eq!(
        (reply.status, &*reply.body),
        (503, "not ready: drained by the operator\n")
    );
    rig.nothing_else(&mut client).await;
    let mut other = rig.client().await;
    let status = api.status().await.unwrap();
    assert!(status.drained && !status.ready);

    let long = Drain {
        close_within_ms: Some(3_600_001),
    };
    assert_eq!(refusal(api.drain(Some(long)).await).0, -32602);
    let soon = Drain {
        close_within_ms: Some(10),
    };
    assert!(!api.drain(Some(soon)).await.unwrap());
    for one in [&mut client, &mut other] {
        let (_, code, reason) = one.closed().await;
        assert_eq!((code, &*reason), (1012, "service restart"));
    }
    assert!(api.undrain().await.unwrap());
    assert!(!api.undrain().await.unwrap());
    assert_eq!(rig.admin("/ready").await.status, 200);

    // The end of a drain keeps those that were not closed yet.
    let _clients = [rig.watcher().await, rig.watcher().await];
    let slowly = Drain {
        close_within_ms: Some(3_600_000),
    };
    assert!(api.drain(Some(slowly)).await.unwrap());
    let closing = async || {
        let page = api.clients(None).await.unwrap();
        page.clients.iter().filter(|one| one.closing).count()
    };
    eventually("one is closed", async || closing().await == 1).await;
    assert!(api.undrain().await.unwrap());
    assert_eq!(closing().await, 1);
}

#[tokio::test]
async fn a_disconnected_client_is_told_so_and_others_stay() {
    let rig = Rig::start().await;
    let api = operator(&rig).await;
    let mut bystander = rig.watcher().await;
    let mut client = rig.client().await;
    eventually("both are there", async || {
        api.clients(None).await.unwrap().connected == 2
    })
    .await;
    let id = api.clients(None).await.unwrap().clients[0].id;
    let mut events = api.subscribe_events(None).await.unwrap();
    api.disconnect(id).await.unwrap();
    let (_, code, reason) = client.closed().await;
    assert_eq!((code, &*reason), (1008, "disconnected by the operator"));
    let closed = event(&mut events, |event| match event {
        Event::Closed {
            client, reason, code, ..
        } => Some((client, reason, code)),
        _ => None,
    });
    assert_eq!(closed.await, (id, "operator".to_owned(), Some(1008)));
    assert_eq!(refusal(api.disconnect(id).await).0, -32001);
    rig.nothing_else(&mut bystander).await;
}

#[tokio::test]
async fn a_reload_is_asked_for_and_checked() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("headwater.toml");
    let write = |text: &str| std::fs::write(&path, text).unwrap();
    write("[limits]\nmax_subscriptions = 1\n");
    let node = node().await;
    let proxy = Proxy::from_file(&path, &[node.ws_url()]).await;
    proxy.settled(&node.handle()).await;
    let api = operator(&proxy).await;
    let mut events = api.subscribe_events(None).await.unwrap();
    assert!(api.check_config().await.unwrap().needs_restart.is_empty());
    write("[limits]\nmax_subscriptions = 2\n[history]\nblocks = 99\n");
    assert_eq!(api.check_config().await.unwrap().needs_restart, ["history.blocks"]);
    assert_eq!(api.reload().await.unwrap().needs_restart, ["history.blocks"]);
    let reloaded = event(&mut events, |event| match event {
        Event::Reloaded { needs_restart } => Some(needs_restart),
        _ => None,
    });
    assert_eq!(reloaded.await, ["history.blocks"]);
    let mut client = proxy.client().await;
    client.subscribe(json!(["newHeads"])).await;
    client.subscribe(json!(["newHeads"])).await;
    write("[limits]\nmax_batch = 0\n");
    for refused in [api.check_config().await, api.reload().await] {
        assert_eq!(
            refusal(refused),
            (-32000, "limits.max_batch: is 0, must be at least 1".to_owned())
        );
    }

    // An app that follows no file has nothing to reload.
    let rig = Rig::start().await;
    let api = operator(&rig).await;
    for refused in [api.check_config().await, api.reload().await] {
        assert_eq!(
            refusal(refused),
            (-32000, "this process follows no configuration".to_owned())
        );
    }
}

#[tokio::test]
async fn every_act_leaves_a_line() {
    let rig = Rig::start().await;
    let api = operator(&rig).await;
    assert!(api.audit(None).await.unwrap().is_empty());
    drop(api.disconnect(7).await);
    drop(api.cordon(UpstreamName::Index(0), None).await);
    drop(api.uncordon(UpstreamName::Index(0)).await);
    drop(api.drain(None).await);
    drop(api.undrain().await);
    drop(api.reload().await);
    // These read.
    drop(api.status().await);
    drop(api.clients(Some(ClientQuery::default())).await);
    let lines: Vec<String> = api
        .audit(None)
        .await
        .unwrap()
        .iter()
        .rev()
        .map(|entry| {
            format!(
                "{} {} {} | {} | {}",
                entry.by, entry.peer, entry.act, entry.target, entry.outcome
            )
        })
        .collect();
    assert_eq!(
        lines,
        [
            "loopback 127.0.0.1 disconnect | client 7 | no such client: it may have left; see operator_clients",
            "loopback 127.0.0.1 cordon | upstream 0 | no other upstream that takes calls is connected: calls would fail; set force",
            "loopback 127.0.0.1 uncordon | upstream 0 | ok",
            "loopback 127.0.0.1 drain |  | ok",
            "loopback 127.0.0.1 undrain |  | ok",
            "loopback 127.0.0.1 reload |  | this process follows no configuration",
        ]
    );
    assert_eq!(api.audit(Some(2)).await.unwrap().len(), 2);
}
