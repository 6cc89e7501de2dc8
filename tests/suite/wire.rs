//! A wire that misbehaves: it stands between a client and a real server and
//! does to each request what the test's script says.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// What becomes of one request.
#[derive(Clone, Debug, Default)]
pub struct Fate {
    /// Waits before anything else.
    pub slow: Duration,
    /// The connection is cut before the server gets anything.
    pub cut: bool,
    /// Answers this instead of asking the server: status, and `Retry-After` in seconds.
    pub refused: Option<(u16, Option<u64>)>,
    /// The server gets it, the client gets: nothing, and the connection stays open.
    pub half_open: bool,
    /// The server gets it, the client's connection is cut.
    pub answer_lost: bool,
    /// The answer stops in the middle of its body.
    pub truncated: bool,
    /// The answer's 404 becomes 410.
    pub gone: bool,
    /// Numbers in `BrokerProperties` become text.
    pub wrong_types: bool,
    /// The headers of a message come twice.
    pub doubled_headers: bool,
    /// `Location` is on another origin.
    pub location_elsewhere: bool,
}

/// A request as the script sees it.
pub struct Asked<'a> {
    pub method: &'a str,
    pub path: &'a str,
    /// Counts all requests of this wire, from 0.
    pub number: usize,
}

type Script = Box<dyn FnMut(&Asked) -> Fate + Send>;

/// The misbehaving wire; it ends with the test's runtime.
pub struct Wire {
    pub address: SocketAddr,
    shared: Arc<Shared>,
}

struct Shared {
    server: SocketAddr,
    script: Mutex<Script>,
    requests: AtomicUsize,
}

impl Wire {
    /// A wire to `server` that behaves well until it is scripted.
    pub async fn to(server: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared {
            server,
            script: Mutex::new(Box::new(|_| Fate::default())),
            requests: AtomicUsize::new(0),
        });
        let wire = shared.clone();
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let wire = wire.clone();
                // A connection that breaks is what this is for.
                tokio::spawn(async move { wire.exchange(client).await });
            }
        });
        Self { address, shared }
    }

    pub fn script(&self, script: impl FnMut(&Asked) -> Fate + Send + 'static) {
        *self.shared.script.lock().unwrap() = Box::new(script);
    }

    /// Requests so far.
    pub fn requests(&self) -> usize {
        self.shared.requests.load(Ordering::Relaxed)
    }
}

impl Shared {
    /// One request and its answer; then the connection ends.
    async fn exchange(&self, mut client: TcpStream) -> std::io::Result<()> {
        let Some((head, body)) = read_request(&mut client).await? else {
            return Ok(());
        };
        let mut line = head.lines().next().unwrap().split(' ');
        let fate = {
            let asked = Asked {
                method: line.next().unwrap(),
                path: line.next().unwrap(),
                number: self.requests.fetch_add(1, Ordering::Relaxed),
            };
            self.script.lock().unwrap()(&asked)
        };
        tokio::time::sleep(fate.slow).await;
        if fate.cut {
            return Ok(());
        }
        if let Some((status, retry_after)) = fate.refused {
            let retry_after = retry_after.map_or(String::new(), |seconds| {
                format!("Retry-After: {seconds}\r\n")
            });
            let body = format!(
                "<Error><Code>{status}</Code><Detail>The request was terminated because the entity is being throttled.</Detail></Error>"
            );
            let answer = format!(
                "HTTP/1.1 {status} Refused\r\nContent-Type: application/xml\r\n{retry_after}Connection: close\r\nContent-Length: {}\r\n\r\n{body}",
                body.len()
            );
            return client.write_all(answer.as_bytes()).await;
        }
        let mut server = TcpStream::connect(self.server).await?;
        let (line, headers) = head.split_once("\r\n").unwrap();
        server
            .write_all(format!("{line}\r\nConnection: close\r\n{headers}").as_bytes())
            .await?;
        server.write_all(&body).await?;
        let mut answer = Vec::new();
        let mut end = [0];
        tokio::select! {
            read = server.read_to_end(&mut answer) => read?,
            // A client that goes away leaves the server, too.
            gone = client.read(&mut end) => return gone.map(|_| ()),
        };
        if fate.half_open {
            return client.read(&mut end).await.map(|_| ());
        }
        if fate.answer_lost {
            return Ok(());
        }
        let answer = changed(answer, &fate);
        let length = match fate.truncated {
            true => head_length(&answer) + (answer.len() - head_length(&answer)) / 2,
            false => answer.len(),
        };
        client.write_all(&answer[..length]).await
    }
}

async fn read_request(client: &mut TcpStream) -> std::io::Result<Option<(String, Vec<u8>)>> {
    let mut bytes = Vec::new();
    while !bytes.windows(4).any(|end| end == b"\r\n\r\n") {
        if client.read_buf(&mut bytes).await? == 0 {
            return Ok(None);
        }
    }
    let body = bytes.split_off(head_length(&bytes));
    let head = String::from_utf8(bytes).unwrap();
    let length: usize = head
        .lines()
        .filter_map(|line| line.split_once(':'))
        .find(|(name, _)| name.eq_ignore_ascii_case("content-length"))
        .map_or(0, |(_, length)| length.trim().parse().unwrap());
    let mut rest = vec![0; length - body.len()];
    client.read_exact(&mut rest).await?;
    Ok(Some((head, [body, rest].concat())))
}

fn head_length(message: &[u8]) -> usize {
    let end = message.windows(4).position(|end| end == b"\r\n\r\n");
    end.unwrap() + 4
}

fn changed(answer: Vec<u8>, fate: &Fate) -> Vec<u8> {
    let (head, body) = answer.split_at(head_length(&answer));
    let mut head = String::from_utf8(head.to_vec()).unwrap();
    if fate.gone {
        head = head.replacen("HTTP/1.1 404", "HTTP/1.1 410", 1);
    }
    let lines = head.trim_end().split("\r\n").flat_map(|line| {
        let (name, value) = line.split_once(": ").unwrap_or((line, ""));
        let line = if fate.wrong_types && name.eq_ignore_ascii_case("brokerproperties") {
            format!("{name}: {}", as_text(value))
        } else if fate.location_elsewhere && name.eq_ignore_ascii_case("location") {
            format!("{name}: http://elsewhere.example/jobs/messages/1/2")
        } else {
            line.to_owned()
        };
        let is_message = ["brokerproperties", "location", "content-type", "k"].contains(&name);
        vec![
            line;
            if fate.doubled_headers && is_message {
                2
            } else {
                1
            }
        ]
    });
    let head = lines.collect::<Vec<_>>().join("\r\n") + "\r\n\r\n";
    [head.as_bytes(), body].concat()
}

/// Every number in a flat JSON object as a string.
fn as_text(properties: &str) -> String {
    let mut properties: serde_json::Map<String, serde_json::Value> =
        serde_json::from_str(properties).unwrap();
    for value in properties.values_mut() {
        if value.is_number() {
            *value = value.to_string().into();
        }
    }
    serde_json::Value::Object(properties).to_string()
}

/// A network that delays everything and cuts connections where it likes, until
/// it is mended.
pub struct ToxicNetwork {
    pub address: SocketAddr,
    shared: Arc<Toxins>,
}

struct Toxins {
    server: SocketAddr,
    /// Pieces of data of which about one is cut; 0: none.
    cut_one_in: AtomicUsize,
    cuts: AtomicUsize,
    random: Mutex<rand::rngs::StdRng>,
}

/// Longest delay of one piece of data.
const DELAY_MAX: Duration = Duration::from_millis(20);

impl ToxicNetwork {
    pub async fn to(server: SocketAddr, seed: u64, cut_one_in: usize) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Toxins {
            server,
            cut_one_in: AtomicUsize::new(cut_one_in),
            cuts: AtomicUsize::new(0),
            random: Mutex::new(rand::SeedableRng::seed_from_u64(seed)),
        });
        let toxins = shared.clone();
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let toxins = toxins.clone();
                // A connection that breaks is what this is for.
                tokio::spawn(async move { toxins.relay(client).await });
            }
        });
        Self { address, shared }
    }

    pub fn mend(&self) {
        self.shared.cut_one_in.store(0, Ordering::Relaxed);
    }

    /// Connections that were cut.
    pub fn cuts(&self) -> usize {
        self.shared.cuts.load(Ordering::Relaxed)
    }
}

impl Toxins {
    async fn relay(&self, client: TcpStream) -> std::io::Result<()> {
        let server = TcpStream::connect(self.server).await?;
        client.set_nodelay(true)?;
        server.set_nodelay(true)?;
        let (mut from_client, mut to_client) = client.into_split();
        let (mut from_server, mut to_server) = server.into_split();
        // Whichever ends first ends both: each is dropped.
        tokio::select! {
            ended = self.pass(&mut from_client, &mut to_server) => ended,
            ended = self.pass(&mut from_server, &mut to_client) => ended,
        }
    }

    async fn pass(
        &self,
        from: &mut tokio::net::tcp::OwnedReadHalf,
        to: &mut tokio::net::tcp::OwnedWriteHalf,
    ) -> std::io::Result<()> {
        use rand::Rng;
        let mut piece = vec![0; 4_096];
        loop {
            let length = from.read(&mut piece).await?;
            if length == 0 {
                return Ok(());
            }
            let (delay, is_cut, kept) = {
                let mut random = self.random.lock().unwrap();
                let one_in = self.cut_one_in.load(Ordering::Relaxed);
                let is_cut = one_in > 0 && random.random_range(0..one_in) == 0;
                let delay = DELAY_MAX.mul_f64(random.random());
                (delay, is_cut, random.random_range(0..length))
            };
            tokio::time::sleep(delay).await;
            if is_cut {
                self.cuts.fetch_add(1, Ordering::Relaxed);
                to.write_all(&piece[..kept]).await?;
                return Ok(());
            }
            to.write_all(&piece[..length]).await?;
        }
    }
}
