//! Callbacks of a module, called as the session calls them.

use jsonrpsee::core::RpcResult;
use jsonrpsee::{ResponsePayload, RpcModule};

use super::*;

fn module() -> RpcModule<u32> {
    let mut module = RpcModule::new(7);
    module
        .register_method("t_sum", |params, context, _| -> RpcResult<u32> {
            let numbers: Vec<u32> = params.parse()?;
            Ok(numbers.iter().sum::<u32>() + *context)
        })
        .unwrap();
    module
        .register_async_method("t_later", |params, _, _| async move {
            tokio::task::yield_now().await;
            params.one::<String>()
        })
        .unwrap();
    module
        .register_method("t_who", |_, _, extensions| -> RpcResult<String> {
            let client = extensions.get::<Client>().expect("every call has its client");
            let connection = extensions.get::<ConnectionId>().expect("every call has its connection");
            Ok(format!("{client:?} {connection:?}"))
        })
        .unwrap();
    module
        .register_method("t_panics", |_, _, _| -> RpcResult<()> {
            panic!("a fault of the module")
        })
        .unwrap();
    module
        .register_async_method("t_panicsLater", |_, _, _| async {
            panic!("a fault of the module") as RpcResult<()>
        })
        .unwrap();
    module
        .register_method("t_long", |_, _, _| -> RpcResult<String> { Ok("x".repeat(2000)) })
        .unwrap();
    module
        .register_method("t_optional", |_, _, _| ResponsePayload::success(None::<u8>))
        .unwrap();
    module
}

fn extension() -> (Extension, Arc<Metrics>) {
    let metrics = Arc::new(Metrics::new().0);
    (Extension::new(module().into(), 1000, metrics.clone()), metrics)
}

async fn called(extension: &Extension, method: &str, params: Option<&str>) -> String {
    let params: Option<Box<RawValue>> = params.map(|text| serde_json::from_str(text).unwrap());
    let client = Client {
        account: 5,
        address: Some("10.0.0.1".parse().unwrap()),
    };
    let connection = extension.connect();
    let call = Call {
        method,
        params: params.as_deref(),
        client,
        connection: &connection,
    };
    let outcome = match extension.call(&call) {
        Local::Now(outcome) => outcome,
        Local::Later(outcome) => outcome.await,
        Local::InDevelopment => unreachable!("callbacks know no such thing"),
    };
    match outcome {
        Outcome::Result(json) => format!("result {}", std::str::from_utf8(&json).unwrap()),
        Outcome::Error(json) => format!("error {}", std::str::from_utf8(&json).unwrap()),
    }
}

#[tokio::test]
async fn outcomes_are_those_of_the_callbacks_without_envelopes() {
    let (extension, metrics) = extension();
    let rows = [
        ("t_sum", Some("[1,2]"), "result 10"),
        (
            "t_sum",
            Some(r#"["x"]"#),
            r#"error {"code":-32602,"message":"Invalid params","data":"#,
        ),
        ("t_sum", None, r#"error {"code":-32602,"#),
        ("t_later", Some(r#"["a}b\"}"]"#), r#"result "a}b\"}""#),
        ("t_later", Some("[]"), r#"error {"code":-32602,"#),
        (
            "t_who",
            None,
            r#"result "Client { account: 5, address: Some(10.0.0.1) } ConnectionId("#,
        ),
        ("t_panics", None, r#"error {"code":-32603,"message":"internal error"}"#),
        (
            "t_panicsLater",
            None,
            r#"error {"code":-32603,"message":"internal error"}"#,
        ),
        (
            "t_long",
            None,
            r#"error {"code":-32008,"message":"Response is too big""#,
        ),
        ("t_optional", None, "result null"),
    ];
    for (method, params, expected) in rows {
        let outcome = called(&extension, method, params).await;
        assert!(outcome.starts_with(expected), "{method} {params:?}: {outcome}");
    }
    let label = crate::telemetry::ReasonLabel { reason: TASK };
    assert_eq!(metrics.panics.get_or_create(&label).get(), 2);
}

#[tokio::test]
async fn a_callback_begins_with_its_turn_and_ends_with_the_connection() {
    use std::sync::atomic::AtomicUsize;

    let begun = Arc::new(AtomicUsize::new(0));
    let seen = || begun.load(Ordering::Relaxed);
    let mut module = RpcModule::new(begun.clone());
    module
        .register_method("t_now", |_, begun, _| begun.fetch_add(1, Ordering::Relaxed))
        .unwrap();
    module
        .register_blocking_method("t_blocking", |_, begun, _| begun.fetch_add(1, Ordering::Relaxed))
        .unwrap();
    module
        .register_async_method("t_never", |_, _, _| std::future::pending::<u8>())
        .unwrap();
    let extension = Extension::new(module.into(), 1000, Arc::new(Metrics::new().0));
    let connection = extension.connect();
    let call = |method| {
        let (params, client) = (
            None,
            Client {
                account: 5,
                address: None,
            },
        );
        let called = extension.call(&Call {
            method,
            params,
            client,
            connection: &connection,
        });
        match called {
            Local::Later(outcome) => outcome,
            _ => panic!("{method} has begun"),
        }
    };
    let (now, blocking, mut never) = (call("t_now"), call("t_blocking"), call("t_never"));
    let late = call("t_blocking");
    assert_eq!(seen(), 0);
    now.await;
    blocking.await;
    assert_eq!(seen(), 2);
    assert!(futures_util::poll!(&mut never).is_pending());
    drop(connection);
    for outcome in [never, late] {
        assert!(matches!(outcome.await, Outcome::Error(_)));
    }
    assert_eq!(seen(), 2);
}

#[test]
fn names_that_headwater_serves_are_refused() {
    let mut methods = Methods::new();
    for taken in [
        "eth_subscribe",
        "eth_subscribeLogs",
        "eth_unsubscribe",
        "eth_chainId",
        "ETH_chainid",
        "eth_getLogs",
        "rpc_discover",
        "rpc.discover",
        "headwater_anything",
        "evm_mine",
    ] {
        let mut module = RpcModule::new(());
        module.register_method(taken, |_, _, _| ()).unwrap();
        let refused = merge(&mut methods, module.into(), crate::rpc::serves).unwrap_err();
        assert!(
            refused.to_string().starts_with(&format!("method {taken} ")),
            "{refused}"
        );
    }
    for free in [
        "my_method",
        "eth_myMethod",
        "ethereum_x",
        "headwaters_x",
        "système_été",
        "",
    ] {
        let mut module = RpcModule::new(());
        module.register_method(free, |_, _, _| ()).unwrap();
        assert!(
            merge(&mut methods, module.clone().into(), crate::rpc::serves).is_ok(),
            "{free}"
        );
        assert!(
            merge(&mut methods, module.into(), crate::rpc::serves).is_err(),
            "{free} twice"
        );
    }
}
