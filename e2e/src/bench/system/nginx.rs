//! One nginx that caches for all, each blob fetched once (`proxy_cache_lock`).

use std::fs;
use std::sync::Arc;

use anyhow::Result;

use super::{Ground, Running};
use crate::bench::pull::Front;
use crate::registry::PORT;

pub(super) fn start(ground: &mut Ground) -> Result<Running> {
    let node = ground.lab.add_node("origin", ground.link)?;
    let config = node.dir().join("nginx.conf");
    fs::write(&config, configuration(&node.dir().to_string_lossy(), &ground.upstream.node().ip().to_string()))?;
    let mut command = node.command("nginx");
    command.arg("-c").arg(&config).arg("-e").arg(node.dir().join("nginx-error.log"));
    let mut process = node.start("nginx", command)?;
    node.wait_listening(&mut process, PORT)?;
    let warm = Front::Http { node: Arc::clone(&node), url: format!("http://127.0.0.1:{PORT}"), ns: false };
    let fronts = ground.fronts(&format!("http://{}:{PORT}", node.ip()), false);
    Ok(Running { fronts, origin: Some(node), warm: Some(warm), payload: None, processes: vec![process] })
}

/// Requests for a blob that is being fetched wait for it: nginx's own limits of 5 seconds would send them to the registry.
fn configuration(dir: &str, upstream: &str) -> String {
    format!(
        "daemon off;
user root;
worker_processes 2;
pid {dir}/nginx.pid;
error_log {dir}/nginx-error.log warn;
events {{}}
http {{
    access_log off;
    sendfile on;
    tcp_nopush on;
    client_body_temp_path {dir}/body;
    proxy_temp_path {dir}/proxy;
    fastcgi_temp_path {dir}/fastcgi;
    uwsgi_temp_path {dir}/uwsgi;
    scgi_temp_path {dir}/scgi;
    proxy_cache_path {dir}/cache keys_zone=blobs:10m max_size=20g use_temp_path=off;
    server {{
        listen {PORT} backlog=4096;
        location /v2/ {{
            proxy_pass http://{upstream}:{PORT};
            proxy_http_version 1.1;
            proxy_set_header Connection \"\";
            proxy_cache blobs;
            proxy_cache_key $uri;
            proxy_cache_valid 200 1d;
            proxy_cache_lock on;
            proxy_cache_lock_timeout 1h;
            proxy_cache_lock_age 1h;
        }}
    }}
}}
"
    )
}
