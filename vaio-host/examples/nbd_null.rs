//! Serves a null or RAM disk on a Unix socket, for measuring: `nbd_null SOCKET null|ram SIZE_MIB`.
use std::{path::Path, sync::Arc};
use vaio_core::{BlockDevice, NullDisk, RamDisk};
use vaio_host::nbd::{Export, Server, ServerSettings};
#[tokio::main(flavor = "current_thread")]
async fn main() {
    let args: Vec<_> = std::env::args().collect();
    let size = args[3].parse::<u64>().unwrap() << 20;
    let device: Arc<dyn BlockDevice> = if args[2] == "null" {
        Arc::new(NullDisk::new(size))
    } else {
        Arc::new(RamDisk::new(size))
    };
    let mut server = Server::new(
        vec![Export::new("", vaio_host::nbd::shim::Disk(device)).with_description("measure")],
        ServerSettings::default(),
    )
    .unwrap();
    server.listen_unix(Path::new(&args[1])).unwrap();
    server
        .run(async {
            let _ = tokio::signal::ctrl_c().await;
        })
        .await;
}
