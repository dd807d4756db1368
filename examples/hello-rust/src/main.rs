//! A function in Rust on the `lambda_runtime` crate, with hooks around the snapshot.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use lambda_runtime::{BoxFuture, Error, LambdaEvent, Runtime, SnapStartResource, service_fn};
use serde_json::{Value, json};

/// Something that must be fresh in every instance: a token, drawn again after each restore.
#[derive(Default)]
struct Token(AtomicU64);

impl Token {
    fn draw(&self) -> Result<(), Error> {
        let mut bytes = [0; 8];
        std::io::Read::read_exact(&mut std::fs::File::open("/dev/urandom")?, &mut bytes)?;
        self.0.store(u64::from_ne_bytes(bytes), Ordering::Relaxed);
        Ok(())
    }
}

impl SnapStartResource for Token {
    fn after_restore(&self) -> BoxFuture<'_, Result<(), Error>> {
        Box::pin(async { self.draw() })
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Error> {
    let token = Arc::new(Token::default());
    token.draw()?;
    let handler = service_fn(async |event: LambdaEvent<Value>| -> Result<Value, Error> {
        let name = event.payload["name"].as_str().unwrap_or("world");
        Ok(json!({
            "message": format!("Hello, {name}!"),
            "request_id": event.context.request_id,
            "token": format!("{:016x}", token.0.load(Ordering::Relaxed)),
        }))
    });
    Runtime::new(handler).register_snapstart_resource(token.clone()).run().await
}
