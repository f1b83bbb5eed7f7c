//! A headless Chromium and its driver, each for one test: a profile of their own, a microphone that
//! hears a recording, and no word to anybody but the server.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use fantoccini::actions::{InputSource, MOUSE_BUTTON_LEFT, MouseActions, PointerAction};
use fantoccini::{Client, ClientBuilder, Locator};
use hyper_util::client::legacy::connect::HttpConnector;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, ChildStdout, Command};

/// Longest wait for a page to show what it is to show.
const SOON: Duration = Duration::from_secs(20);

pub struct Browser {
    client: Client,
    driver: Child,
    /// A program whose output nobody reads may end.
    _output: BufReader<ChildStdout>,
}

impl Browser {
    /// None where Chromium or its driver is not installed.
    pub async fn open(scratch: &Path, microphone: &Path) -> Option<Self> {
        let chromium = Path::new("/usr/bin/chromium");
        let driver = Command::new("chromedriver")
            .arg("--port=0")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn();
        let (true, Ok(mut driver)) = (chromium.exists(), driver) else { return None };
        let mut output = BufReader::new(driver.stdout.take().unwrap());
        let port = tokio::time::timeout(SOON, port(&mut output)).await.unwrap();
        let flags = [
            "--headless=new".to_owned(),
            "--no-sandbox".to_owned(),
            "--disable-gpu".to_owned(),
            "--disable-dev-shm-usage".to_owned(),
            "--no-first-run".to_owned(),
            "--disable-background-networking".to_owned(),
            "--disable-component-update".to_owned(),
            "--disable-sync".to_owned(),
            "--disable-quic".to_owned(),
            "--autoplay-policy=no-user-gesture-required".to_owned(),
            "--use-fake-device-for-media-stream".to_owned(),
            "--use-fake-ui-for-media-stream".to_owned(),
            format!("--use-file-for-fake-audio-capture={}", microphone.display()),
            format!("--user-data-dir={}", scratch.join("profile").display()),
            "--window-size=1280,900".to_owned(),
        ];
        let wanted = json!({
            "goog:chromeOptions": {"binary": chromium, "args": flags},
            "goog:loggingPrefs": {"browser": "ALL"},
        });
        let client = ClientBuilder::new(HttpConnector::new())
            .capabilities(wanted.as_object().unwrap().clone())
            .connect(&format!("http://127.0.0.1:{port}"))
            .await
            .expect("chromium starts");
        Some(Self { client, driver, _output: output })
    }

    pub async fn go(&self, url: &str) {
        self.client.goto(url).await.unwrap();
        // What the page complains of, and what its policy keeps from it.
        self.client
            .execute(
                "window.complaints = [];
                 for (const kind of ['error', 'unhandledrejection', 'securitypolicyviolation']) {
                   window.addEventListener(kind, (e) => window.complaints.push(
                     `${kind}: ${e.message ?? e.reason ?? e.violatedDirective}`));
                 }",
                vec![],
            )
            .await
            .unwrap();
    }

    /// Errors of scripts, and breaches of the page's own policy.
    pub async fn complaints(&self) -> Vec<String> {
        serde_json::from_value(self.value("window.complaints").await).unwrap()
    }

    /// What an expression is on the page now.
    pub async fn value(&self, expression: &str) -> Value {
        self.client.execute(&format!("return {expression}"), vec![]).await.unwrap()
    }

    /// What an expression is once it is as wanted; until then it may fail.
    pub async fn until(&self, expression: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let script = format!("try {{ return {expression} }} catch (e) {{ return String(e) }}");
        let deadline = tokio::time::Instant::now() + SOON;
        loop {
            let value = self.client.execute(&script, vec![]).await.unwrap();
            if wanted(&value) {
                return value;
            }
            assert!(tokio::time::Instant::now() < deadline, "{expression} stays {value}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    pub async fn click(&self, css: &str) {
        let wait = self.client.wait().at_most(SOON);
        wait.for_element(Locator::Css(css)).await.unwrap().click().await.unwrap();
    }

    /// Writes into a field.
    pub async fn set(&self, css: &str, text: &str) {
        let field = self.client.find(Locator::Css(css)).await.unwrap();
        field.clear().await.unwrap();
        field.send_keys(text).await.unwrap();
    }

    /// Presses the mouse's button there for as long.
    pub async fn hold(&self, css: &str, time: Duration) {
        let element = self.client.find(Locator::Css(css)).await.unwrap();
        let press = MouseActions::new("mouse".to_owned())
            .then(PointerAction::MoveToElement { element, duration: None, x: 0.0, y: 0.0 })
            .then(PointerAction::Down { button: MOUSE_BUTTON_LEFT })
            .then(PointerAction::Pause { duration: time })
            .then(PointerAction::Up { button: MOUSE_BUTTON_LEFT });
        self.client.perform_actions(press).await.unwrap();
    }

    pub async fn close(mut self) {
        self.client.close().await.unwrap();
        self.driver.kill().await.unwrap();
    }
}

/// Where the driver says that it listens.
async fn port(output: &mut BufReader<ChildStdout>) -> u16 {
    let mut line = String::new();
    while output.read_line(&mut line).await.unwrap() > 0 {
        if let Some((_, rest)) = line.split_once("started successfully on port ") {
            return rest.trim().trim_end_matches('.').parse().unwrap();
        }
        line.clear();
    }
    panic!("chromedriver ended by itself");
}
