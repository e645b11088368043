//! The servers behind a Service: the ready endpoints of its `EndpointSlice`s, followed as pods come and go.
//!
//! Needs no cluster DNS and no kube-proxy. A `StatefulSet`'s pod keeps its name, and so what it owns, when its address changes.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use futures_util::stream::{self, BoxStream, StreamExt as _};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::runtime::watcher;
use kube::{Api, Client};
use shoal_kit::Rejected;
use shoal_meta::Server;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::{Change, changes};

/// What addresses of Services begin with.
const SCHEME: &str = "kubernetes:///";
/// The most servers of one Service; more are left out.
const SERVERS_MAX: usize = 64;
/// The label that names an `EndpointSlice`'s Service.
const SERVICE_LABEL: &str = "kubernetes.io/service-name";

/// A Service, as `kubernetes:///NAME[.NAMESPACE]:PORT`.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Service {
    name: String,
    /// None: the namespace of the pod this runs in.
    namespace: Option<String>,
    /// The port's name or number.
    port: String,
}

/// Follows the servers of a config key: those that its addresses name outright, and those behind Services, written as
/// `kubernetes:///NAME[.NAMESPACE]:PORT`, where the port is a number or a name. At first only the former are there.
///
/// # Errors
/// When an address of a Service cannot be read.
///
/// # Panics
/// Outside of a tokio runtime, if an address is one of a Service.
pub fn servers(
    key: &'static str,
    addresses: &[String],
    shutdown: CancellationToken,
) -> Result<watch::Receiver<Vec<Server>>, Rejected> {
    let (of_services, fixed): (Vec<_>, Vec<_>) =
        addresses.iter().partition(|address| address.starts_with("kubernetes:"));
    let refused =
        |address| Rejected::new(key, address, "kubernetes:///service:port or kubernetes:///service.namespace:port");
    let services = of_services.into_iter().map(|address| address.parse::<Service>().map_err(|_| refused(address)));
    let services = services.collect::<Result<Vec<_>, _>>()?;
    let fixed: Vec<_> = fixed.into_iter().map(|url| Server::at(url)).collect();
    let (known, servers) = watch::channel(fixed.clone());
    if !services.is_empty() {
        tokio::spawn(async move { shutdown.run_until_cancelled(follow(key, &services, fixed, &known)).await });
    }
    Ok(servers)
}

async fn follow(key: &'static str, services: &[Service], fixed: Vec<Server>, known: &watch::Sender<Vec<Server>>) {
    let client = match Client::try_default().await {
        Ok(client) => client,
        Err(error) => {
            return tracing::error!(
                key,
                error = &error as &dyn std::error::Error,
                "no way to the Kubernetes API server is configured"
            );
        }
    };
    let mut found = vec![Vec::new(); services.len()];
    let streams = services.iter().enumerate().map(|(index, service)| {
        let servers = service.endpoints(client.clone());
        servers.map(move |servers| (index, servers)).boxed()
    });
    let mut all = stream::select_all(streams);
    while let Some((index, servers)) = all.next().await {
        found[index] = servers;
        let servers = fixed.iter().chain(found.iter().flatten()).cloned().collect::<Vec<_>>();
        known.send_if_modified(|known| {
            let changed = *known != servers;
            if changed {
                tracing::info!(key, count = servers.len(), "the servers of a Service have changed");
                *known = servers;
            }
            changed
        });
    }
}

impl Service {
    /// The servers behind it, anew with each change. While the API server is away nothing comes.
    fn endpoints(&self, client: Client) -> BoxStream<'static, Vec<Server>> {
        let api: Api<EndpointSlice> = match &self.namespace {
            Some(namespace) => Api::namespaced(client, namespace),
            None => Api::default_namespaced(client),
        };
        let service = self.clone();
        let selected = watcher::Config::default().labels(&format!("{SERVICE_LABEL}={}", self.name));
        let mut slices = Slices::default();
        let changes = changes(watcher(api, selected), "the endpoints of a Service", |slice| slice);
        let servers = changes.map(move |change| {
            slices.take_in(change);
            service.servers_of(slices.0.values())
        });
        servers.boxed()
    }

    /// The ready ones, in order of their names.
    fn servers_of<'a>(&self, slices: impl Iterator<Item = &'a EndpointSlice>) -> Vec<Server> {
        let mut servers = BTreeSet::new();
        for slice in slices {
            let Some(port) = self.port_in(slice) else { continue };
            for endpoint in &slice.endpoints {
                // Nothing said means ready.
                if endpoint.conditions.as_ref().and_then(|conditions| conditions.ready) == Some(false) {
                    continue;
                }
                // All of an endpoint's addresses are the same pod.
                let Some(address) = endpoint.addresses.first().and_then(|text| text.parse::<IpAddr>().ok()) else {
                    continue;
                };
                let url = match address {
                    IpAddr::V4(address) => format!("http://{address}:{port}"),
                    IpAddr::V6(address) => format!("http://[{address}]:{port}"),
                };
                let pod = endpoint.target_ref.as_ref().and_then(|pod| pod.name.clone());
                servers.insert(Server { name: pod.unwrap_or_else(|| url.clone()), url });
            }
        }
        servers.into_iter().take(SERVERS_MAX).collect()
    }

    fn port_in(&self, slice: &EndpointSlice) -> Option<u16> {
        if let Ok(number) = self.port.parse() {
            return Some(number);
        }
        let ports = slice.ports.iter().flatten();
        let port = ports.filter(|port| port.name.as_ref() == Some(&self.port)).find_map(|port| port.port)?;
        u16::try_from(port).ok()
    }
}

impl FromStr for Service {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (service, port) = text.strip_prefix(SCHEME).and_then(|rest| rest.rsplit_once(':')).ok_or(())?;
        let (name, namespace) = match service.split_once('.') {
            Some((name, namespace)) => (name, Some(namespace)),
            None => (service, None),
        };
        // RFC 1123 labels; a port's name is one too.
        let is_label = |label: &str| {
            let inner = label.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-');
            inner && (1..=63).contains(&label.len())
        };
        let is_port = port.parse::<u16>().map_or_else(|_| is_label(port) && port.len() <= 15, |number| number > 0);
        if !is_label(name) || !namespace.is_none_or(is_label) || !is_port {
            return Err(());
        }
        Ok(Self { name: name.to_owned(), namespace: namespace.map(str::to_owned), port: port.to_owned() })
    }
}

impl fmt::Display for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, namespace, port } = self;
        match namespace {
            Some(namespace) => write!(f, "{SCHEME}{name}.{namespace}:{port}"),
            None => write!(f, "{SCHEME}{name}:{port}"),
        }
    }
}

/// The slices of one Service by name, as a watch tells of them.
#[derive(Default)]
struct Slices(BTreeMap<String, EndpointSlice>);

impl Slices {
    fn take_in(&mut self, change: Change<EndpointSlice>) {
        let named = |slice: EndpointSlice| (slice.metadata.name.clone().unwrap_or_default(), slice);
        match change {
            Change::All(slices) => self.0 = slices.into_iter().map(named).collect(),
            Change::Set(slice) => self.0.extend([named(slice)]),
            Change::Gone(slice) => _ = self.0.remove(&named(slice).0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(port: &str) -> Service {
        format!("kubernetes:///shoal-origin:{port}").parse().unwrap()
    }

    fn slice(name: &str, endpoints: &serde_json::Value) -> EndpointSlice {
        serde_json::from_value(serde_json::json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "metadata": { "name": name },
            "addressType": "IPv4", "ports": [{ "name": "grpc", "port": 7500 }], "endpoints": endpoints,
        }))
        .unwrap()
    }

    fn endpoint(pod: &str, address: &str, ready: Option<bool>) -> serde_json::Value {
        serde_json::json!({
            "addresses": [address], "conditions": { "ready": ready },
            "targetRef": { "kind": "Pod", "name": pod },
        })
    }

    fn urls(servers: &[Server]) -> Vec<(&str, &str)> {
        servers.iter().map(|server| (server.name.as_str(), server.url.as_str())).collect()
    }

    #[test]
    fn a_service_is_a_name_a_namespace_and_a_port() {
        for text in ["kubernetes:///shoal-origin:7500", "kubernetes:///shoal-origin.shoal:grpc"] {
            assert_eq!(text.parse::<Service>().unwrap().to_string(), text);
        }
        for text in [
            "kubernetes://shoal-origin:7500",
            "kubernetes:///shoal-origin",
            "kubernetes:///:7500",
            "kubernetes:///a.b.c:7500",
            "kubernetes:///a:0",
            "kubernetes:///a:",
            "kubernetes:///A:1",
        ] {
            let error = servers("origins", &[text.to_owned()], CancellationToken::new()).unwrap_err().to_string();
            assert!(error.contains("`origins`") && error.contains(text), "{error}");
        }
    }

    #[test]
    fn servers_named_outright_are_there_at_once() {
        let servers = servers("origins", &["http://a:1".to_owned()], CancellationToken::new()).unwrap();
        assert_eq!(*servers.borrow(), [Server::at("http://a:1")]);
    }

    #[test]
    fn only_ready_endpoints_are_servers_and_each_is_called_as_its_pod() {
        let slices = [
            slice("b", &serde_json::json!([endpoint("shoal-origin-1", "10.0.0.2", Some(true))])),
            slice(
                "a",
                &serde_json::json!([
                    endpoint("shoal-origin-0", "10.0.0.1", None),
                    endpoint("shoal-origin-2", "10.0.0.3", Some(false)),
                    // A slice may still hold what another one has by now.
                    endpoint("shoal-origin-1", "10.0.0.2", Some(true)),
                ]),
            ),
        ];
        let expected = [("shoal-origin-0", "http://10.0.0.1:7500"), ("shoal-origin-1", "http://10.0.0.2:7500")];
        assert_eq!(urls(&service("grpc").servers_of(slices.iter())), expected);
        assert_eq!(urls(&service("7500").servers_of(slices.iter())), expected);
        assert!(service("http").servers_of(slices.iter()).is_empty());
    }

    #[test]
    fn slices_come_and_go_by_their_names() {
        let empty = |name| slice(name, &serde_json::json!([]));
        let mut slices = Slices::default();
        slices.take_in(Change::All(vec![empty("a"), empty("b")]));
        slices.take_in(Change::Set(empty("c")));
        slices.take_in(Change::Gone(empty("a")));
        assert_eq!(slices.0.keys().collect::<Vec<_>>(), ["b", "c"]);
        slices.take_in(Change::All(vec![empty("d")]));
        assert_eq!(slices.0.keys().collect::<Vec<_>>(), ["d"]);
    }
}
