//! A real Prometheus server that scrapes pillions.

use super::{Process, eventually, free_port, program};
use crate::e2e::get_path;
use std::{fmt::Write, fs, net::SocketAddr, process::Command};
use tempfile::TempDir;

pub struct PrometheusServer {
    _process: Process,
    _dir: TempDir,
}

/// Where one will be.
pub struct Reserved {
    port: u16,
}

impl PrometheusServer {
    pub fn reserve() -> Reserved {
        Reserved { port: free_port() }
    }
}

impl Reserved {
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Starts it, and waits until it has scraped all of these.
    pub async fn start(self, targets: &[SocketAddr]) -> PrometheusServer {
        let dir = TempDir::new().unwrap();
        let mut config = "global: { scrape_interval: 500ms, scrape_timeout: 500ms }\n\
                          scrape_configs:\n- job_name: pillion\n  static_configs:\n  - targets:\n"
            .to_owned();
        for target in targets {
            writeln!(config, "    - {target}").unwrap();
        }
        let file = dir.path().join("prometheus.yml");
        fs::write(&file, config).unwrap();
        let mut command = Command::new(program("prometheus"));
        command.arg(format!("--config.file={}", file.display()));
        command.arg(format!("--storage.tsdb.path={}", dir.path().join("data").display()));
        command.arg(format!("--web.listen-address=127.0.0.1:{}", self.port));
        let process = Process::start(command, &dir.path().join("log"));
        let address = SocketAddr::from(([127, 0, 0, 1], self.port));
        eventually("Prometheus has scraped all", async || {
            let answer = get_path(address, "prometheus", "/api/v1/query?query=up%3D%3D1").await;
            answer.is_ok_and(|(_, text)| text.matches("\"instance\"").count() == targets.len())
        })
        .await;
        PrometheusServer { _process: process, _dir: dir }
    }
}
