//! Object stores that others wrote, over real HTTP on loopback.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::{COMMAND_LIMIT, Running, Scene, python, run, tool};

const START_LIMIT: Duration = Duration::from_secs(60);

/// A port that was free a moment ago.
pub fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

#[track_caller]
fn wait_for_port(process: &mut Running, port: u16) {
    let end = Instant::now() + START_LIMIT;
    while TcpStream::connect(("127.0.0.1", port)).is_err() {
        assert!(process.is_running() && Instant::now() < end, "it does not listen\n{}", process.said());
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// moto's S3, with an empty `bucket`.
pub struct Moto {
    _process: Running,
    endpoint: String,
}

impl Moto {
    #[track_caller]
    pub fn start() -> Self {
        let port = free_port();
        let mut command = Command::new(tool("venv/bin/moto_server"));
        command.args(["-H", "127.0.0.1", "-p", &port.to_string()]);
        let mut process = Running::start(&mut command, Stdio::null());
        wait_for_port(&mut process, port);
        let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
        stream.set_read_timeout(Some(START_LIMIT)).unwrap();
        stream
            .write_all(b"PUT /bucket HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        Self { _process: process, endpoint: format!("http://127.0.0.1:{port}") }
    }

    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }
}

/// The key that every Azurite accepts; published in its documentation.
const AZURITE_ACCOUNT: &str = "devstoreaccount1";
const AZURITE_KEY: &str = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==";

/// Azurite's blob service, with an empty `container`.
pub struct Azurite {
    _process: Running,
    _folder: TempDir,
    endpoint: String,
}

impl Azurite {
    #[track_caller]
    pub fn start() -> Self {
        let port = free_port();
        let folder = TempDir::new().unwrap();
        let mut command = Command::new(tool("node_modules/.bin/azurite-blob"));
        command.args(["--silent", "--skipApiVersionCheck", "--disableTelemetry", "--blobHost", "127.0.0.1"]);
        command.args(["--blobPort", &port.to_string(), "--location"]).arg(folder.path());
        let mut process = Running::start(&mut command, Stdio::null());
        wait_for_port(&mut process, port);
        let endpoint = format!("http://127.0.0.1:{port}/{AZURITE_ACCOUNT}");
        let mut script = python("azure_container.py");
        run(script.args([&endpoint, AZURITE_ACCOUNT, AZURITE_KEY, "container"]), COMMAND_LIMIT).ok();
        Self { _process: process, _folder: folder, endpoint }
    }
}

impl Scene {
    /// Makes an S3 bucket the remote; its credentials are canaries.
    pub fn use_s3(&mut self, endpoint: &str) {
        self.remote = "s3://bucket/shadow".into();
        self.environment = vec![
            ("AWS_ENDPOINT_URL", endpoint.into()),
            ("AWS_ALLOW_HTTP", "true".into()),
            ("AWS_REGION", "us-east-1".into()),
            ("AWS_ACCESS_KEY_ID", "umbra-test".into()),
            ("AWS_SECRET_ACCESS_KEY", super::CANARY.into()),
        ];
    }

    /// Makes a container of an Azure store the remote.
    pub fn use_azure(&mut self, azurite: &Azurite) {
        self.remote = "az://container/shadow".into();
        self.environment = vec![
            ("AZURE_STORAGE_ENDPOINT", azurite.endpoint.clone()),
            ("AZURE_ALLOW_HTTP", "true".into()),
            ("AZURE_STORAGE_ACCOUNT_NAME", AZURITE_ACCOUNT.into()),
            ("AZURE_STORAGE_ACCOUNT_KEY", AZURITE_KEY.into()),
        ];
    }

    /// What must not be seen in anything that is printed.
    pub fn secrets() -> [&'static str; 2] {
        [super::CANARY, AZURITE_KEY]
    }
}
