//! gRPC as its own libraries speak it, grpcio and grpc-js, on either side of the real agent.

use std::{net::SocketAddr, process::Command};

use sockway_tests::{
    agent::Agent,
    config::Service,
    peers,
    process::{self, Process, Room},
    stage::Stage,
    wait,
};

const PYTHON: &str = include_str!("grpc_clients/peer.py");
const NODE: &str = include_str!("grpc_clients/peer.js");

/// A library on one side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Library {
    Grpcio,
    GrpcJs,
}

impl Library {
    /// Those that are here.
    fn all() -> Vec<Self> {
        let node = peers::node_packages().map(|_| Self::GrpcJs);
        [Self::Grpcio].into_iter().chain(node).collect()
    }

    fn command(self, role: &str, address: SocketAddr) -> Command {
        let address = address.to_string();
        match self {
            Self::Grpcio => peers::python_command(PYTHON, &[role, &address]),
            Self::GrpcJs => peers::node_command(NODE, &[role, &address]).expect("looked for before"),
        }
    }

    /// A server, which tells what it was told to give up.
    fn serve(self, stage: &Stage) -> (Process, SocketAddr) {
        let address = stage.address();
        let server = Process::spawn(Room::of(&stage.origins), self.command("serve", address));
        wait::until("a gRPC server", wait::SOON, || server.stdout().contains("serving"));
        (server, address)
    }

    /// Runs a client to its end.
    #[track_caller]
    fn run(self, stage: &Stage, role: &str, address: SocketAddr) {
        let mut command = self.command(role, address);
        // A proxy that the environment names is not asked for the way.
        command.env("no_grpc_proxy", "*").env("no_proxy", "*");
        let output = process::run(Room::of(&stage.clients), command);
        let said = (peers::stdout(&output), String::from_utf8_lossy(&output.stderr));
        assert!(said.0.ends_with("done\n"), "{self:?} at {address}: {said:?}");
    }
}

fn statuses(agent: &Agent) -> Vec<f64> {
    let count = |status| agent.metric("sockway_grpc_responses_total", &[("status", status)]);
    ["OK", "NOT_FOUND", "UNAUTHENTICATED", "UNIMPLEMENTED"].map(count).to_vec()
}

/// Calls of every kind, from every library to a server of this one, by prior knowledge and by what the first bytes are.
#[track_caller]
fn every_call_arrives(server: Library) {
    let Some(stage) = Stage::set() else { return };
    let (server, endpoint) = server.serve(&stage);
    let (known, sniffed) = (stage.address(), stage.address());
    let config = stage
        .config()
        .service(Service::http2("known", known).to(endpoint))
        .service(Service::auto("sniffed", sniffed).to(endpoint));
    let agent = Agent::start(&config);
    let libraries = Library::all();
    for library in &libraries {
        library.run(&stage, "call", known);
        library.run(&stage, "call", sniffed);
    }
    let runs = 2 * libraries.len();
    wait::until("the server to be told of what was given up", wait::SOON, || {
        let said = server.stdout();
        said.matches("cancels\n").count() == runs && said.matches("has a deadline\n").count() == runs
    });
    let counted = statuses(&agent);
    let runs = runs as f64;
    assert!(counted[0] >= runs * 500.0, "{counted:?}");
    // Each number is asked for once; a method that there is not is UNIMPLEMENTED, too.
    assert_eq!(counted[1..], [runs, runs, 2.0 * runs]);
}

#[test]
fn every_kind_of_call_arrives_at_a_server_of_grpcio() {
    every_call_arrives(Library::Grpcio);
}

#[test]
fn every_kind_of_call_arrives_at_a_server_of_grpc_js() {
    if Library::all().contains(&Library::GrpcJs) {
        every_call_arrives(Library::GrpcJs);
    }
}

#[test]
fn where_no_endpoint_is_the_libraries_read_the_status_that_the_agent_gives() {
    let Some(stage) = Stage::set() else { return };
    let (known, sniffed) = (stage.address(), stage.address());
    let config = stage
        .config()
        .service(Service::http2("known", known).to(stage.address()))
        .service(Service::auto("sniffed", sniffed).to(stage.address()));
    let _agent = Agent::start(&config);
    for library in Library::all() {
        library.run(&stage, "told", known);
        // A client that has said nothing yet may be of any protocol: its connection is reset.
        library.run(&stage, "nobody", sniffed);
    }
}
