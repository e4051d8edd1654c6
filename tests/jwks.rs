//! Keys of tokens that are fetched: over HTTP and HTTPS, kept when that fails, and fetched again when one is missing.

use std::{
    fs, thread,
    time::{Duration, Instant},
};

use sockway_tests::{
    agent::Agent,
    config::Service,
    filtered::{Filtered, counted, field, status},
    peers::python_command,
    process::{Process, Room},
    stage::Stage,
    tls::Authority,
    wait,
};

/// A key set, the same with another name for its key, and a token that the key has signed under the name `r`: {"sub":"ann"}.
const KEYS: &str = r#"{"keys":[{"kty":"RSA","kid":"r","e":"AQAB","n":"nWpzyhoeSog8h08e1OnuG705YGZvNt6b2uxXE6JaldYEmCCOq03rZHzRoTJBNCV-m-ZZkCBaewTDYYt42dC9NYuLjimK8NM664tGFuV3L8axNnB4bzW1uocr3L1wrZkBddqqMIY0-DNedFMU_HPMqG3iBmeqUHZXMzxSkp5Zk94EfiQnayHl5SKct3KBJHpADQ7r3SKjKGmBIA9aWG4ipS6OmiJ1oZW8a65--d9Z2oSMhh_rq-r0NH7U-WbnQUczFXBRw2ZSVNbgCD3vSXorIEfT8JxvBwZx_RieRaQ0ajMTecSIYZH6vQhTkN8r5EI5jUB8O_zM5eT0G7tWwEsRww"}]}"#;
const TOKEN: &str = "authorization: Bearer eyJhbGciOiJSUzI1NiIsImtpZCI6InIifQ.eyJzdWIiOiJhbm4ifQ.GrIgKY5IVdtLgWC6mb0zRZ1lA93DAfkMmesFJxWttKmkyi\
    hcMpaafAV1kL1pNXkNP7gwMHvVpVBgmGvi58D_MQ6KSeVoHjm7kmfrfaJggwISGMZMDpZr8zXwMzJaSi4YC-2vjzVNnWC3bFOXsl\
    edjv4JqNo-R6E01OOXYXYXuMofAMq1FgV48kBnTwIAnsbafbymrAL6N217tSq6YTwwA1bIjMWHsaNmg-tgs3e7ljYIwsV9hoPYoQ\
    AaTEHJM54vkfmGMzC0vUMsGrkmIscP-wIES7ayzkHzOFTIKMs8_baHcryz6AH4i6hGmSMoMxZ8bivodOrIvxXShssq9ppXHQ";

fn asks(pair: &Filtered, index: usize) -> String {
    pair.ask(index, "/request", &["--header", TOKEN])
}

fn fetches(agent: &Agent, result: &str) -> f64 {
    agent.metric("sockway_jwks_fetches_total", &[("result", result)])
}

/// Both services, with a filter that is made when it is known where the keys are; who has them.
fn scene(keys: &str) -> Option<(Filtered, sockway_tests::web::Web)> {
    let pair = Filtered::by("")?;
    let issuer = pair.stage.web("issuer");
    let filter = format!("filters: [{{ kind: jwt, jwks_url: 'http://{}/keys', {keys} }}]", issuer.address());
    let [one, two] = pair.services;
    let first = Service::http("one", one).set(&filter).to(pair.web.address());
    let second = Service::http2("two", two).set("upstream_protocol: http1").set(&filter).to(pair.web.address());
    let config = pair.stage.config().service(first).service(second);
    Some((Filtered { config, ..pair }, issuer))
}

#[test]
fn tokens_are_refused_until_there_are_keys_and_old_keys_are_kept_when_there_are_no_new_ones() {
    let Some((pair, issuer)) = scene("jwks_refresh_s: 1, claims: { sub: x-user }") else { return };
    issuer.say("/keys", 503, "", "not now");
    let agent = Agent::start(&pair.config);
    for index in [0, 1] {
        let answer = asks(&pair, index);
        assert_eq!(status(&answer), "503", "{answer}");
        assert!(answer.contains("could not be fetched yet"), "{answer}");
    }
    let call = pair.ask(1, "/", &["--header", "content-type: application/grpc", "--header", TOKEN]);
    assert_eq!(field(&call, "grpc-status"), Some("14"), "{call}");
    assert_eq!((counted(&agent, "jwt", "failed"), pair.web.requests()), (3.0, 0));
    issuer.say("/keys", 200, "content-type: application/json", KEYS);
    for index in [0, 1] {
        wait::until("the keys to be there", wait::SOON, || status(&asks(&pair, index)) == "200");
        assert!(asks(&pair, index).contains("x-user: ann"));
    }
    // It fails again, in whatever way: what there was is used.
    for (code, text) in [(500, ""), (200, "{\"keys\":[]}"), (200, "no json")] {
        issuer.say("/keys", code, "", text);
        let failed = fetches(&agent, "failed");
        wait::until("it to fail", wait::SOON, || fetches(&agent, "failed") > failed);
        assert_eq!(status(&asks(&pair, 0)), "200", "{code} {text}");
    }
    let dead = issuer.asked("/keys");
    issuer.die();
    let failed = fetches(&agent, "failed");
    wait::until("it to fail", wait::SOON, || fetches(&agent, "failed") > failed);
    assert_eq!(status(&asks(&pair, 1)), "200");
    assert!(dead > 0 && fetches(&agent, "fetched") >= 2.0);
}

#[test]
fn a_token_of_an_unknown_key_has_the_keys_fetched_again_but_not_each_time() {
    let Some((pair, issuer)) = scene("jwks_refresh_s: 3600") else { return };
    issuer.say("/keys", 200, "", &KEYS.replace("\"r\"", "\"old\""));
    let agent = Agent::start(&pair.config);
    wait::until("the keys to be there", wait::SOON, || fetches(&agent, "fetched") == 2.0);
    for _ in 0..20 {
        assert_eq!(status(&asks(&pair, 0)), "401");
    }
    assert!(issuer.asked("/keys") <= 4, "{}", issuer.asked("/keys"));
    issuer.say("/keys", 200, "", KEYS);
    wait::until("the new key to be there", wait::SOON, || status(&asks(&pair, 0)) == "200");
    assert!(issuer.asked("/keys") <= 8, "{}", issuer.asked("/keys"));
}

#[test]
fn keys_are_fetched_over_tls_from_whom_the_roots_vouch_for() {
    let Some(stage) = Stage::set() else { return };
    let authority = Authority::new();
    let (_server, port, _folder) = secure_issuer(&stage, &authority);
    let path = |path: &std::path::Path| path.display().to_string();
    let web = stage.web("a");
    let [trusting, doubting] = [stage.address(), stage.address()];
    let service = |name: &str, address, roots: &str| {
        let filter =
            format!("filters: [{{ kind: jwt, jwks_url: 'https://localhost:{port}/keys', jwks_roots: {roots} }}]");
        Service::http(name, address).set(&filter).to(web.address())
    };
    let other = Authority::new();
    let config = stage.config().service(service("trusts", trusting, &path(&authority.root()))).service(service(
        "doubts",
        doubting,
        &path(&other.root()),
    ));
    let agent = Agent::start(&config);
    let ask = |address| {
        let output = sockway_tests::peers::curl(
            Room::of(&stage.clients),
            &["--include", "--header", TOKEN, &format!("http://{address}/")],
        );
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    wait::until("the keys to be there", wait::SOON, || status(&ask(trusting)) == "200");
    wait::until("the other to fail", wait::SOON, || {
        agent.metric("sockway_jwks_fetches_total", &[("service", "doubts"), ("result", "failed")]) > 0.0
    });
    assert_eq!(status(&ask(doubting)), "503");
}

/// A server of a key set over TLS, and its port.
fn secure_issuer(stage: &Stage, authority: &Authority) -> (Process, u16, tempfile::TempDir) {
    let pair = authority.issue("issuer", &["127.0.0.1", "localhost"]);
    let folder = tempfile::tempdir().expect("a folder");
    fs::write(folder.path().join("keys"), KEYS).expect("a file");
    let program = "import http.server, ssl, sys, os\n\
                   os.chdir(sys.argv[1])\n\
                   server = http.server.HTTPServer(('127.0.0.1', 0), http.server.SimpleHTTPRequestHandler)\n\
                   context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)\n\
                   context.load_cert_chain(sys.argv[2], sys.argv[3])\n\
                   server.socket = context.wrap_socket(server.socket, server_side=True)\n\
                   print(server.server_port, flush=True)\n\
                   server.serve_forever()";
    let path = |path: &std::path::Path| path.display().to_string();
    let arguments = [path(folder.path()), path(&pair.cert), path(&pair.key)];
    let server = Process::spawn(
        Room::of(&stage.origins),
        python_command(program, &arguments.each_ref().map(|argument| argument.as_str())),
    );
    let port = wait::until_some("python to listen", wait::SOON, || server.stdout().trim().parse::<u16>().ok());
    (server, port, folder)
}

#[test]
fn who_says_nothing_of_roots_trusts_those_of_the_system() {
    let Some(stage) = Stage::set() else { return };
    let authority = Authority::new();
    let (_server, port, _folder) = secure_issuer(&stage, &authority);
    let (web, service) = (stage.web("a"), stage.address());
    let filter = format!("filters: [{{ kind: jwt, jwks_url: 'https://localhost:{port}/keys' }}]");
    let config = |instance: &sockway_tests::config::Config| {
        instance.with_services([Service::http("one", service).set(&filter).to(web.address())])
    };
    let roots = format!("SSL_CERT_FILE={}", authority.root().display());
    let ask = || {
        let output = sockway_tests::peers::curl(
            Room::of(&stage.clients),
            &["--include", "--header", TOKEN, &format!("http://{service}/")],
        );
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    {
        let _agent = Agent::start_through(&["env", &roots], &config(&stage.config()));
        wait::until("the keys to be there", wait::SOON, || status(&ask()) == "200");
    }
    // The host's own know nothing of this authority.
    let agent = Agent::start(&config(&stage.config()));
    wait::until("it to fail", wait::SOON, || fetches(&agent, "failed") > 0.0);
    assert_eq!(status(&ask()), "503");
}

#[test]
fn keys_are_fetched_again_when_their_own_answer_says_and_no_later_than_the_configuration() {
    let Some((pair, issuer)) = scene("jwks_refresh_s: 3600") else { return };
    // Not below five seconds, whatever an answer says: who makes up numbers makes no load.
    issuer.say("/keys", 200, "cache-control: public, Max-Age=\"1\"", KEYS);
    let agent = Agent::start(&pair.config);
    let began = Instant::now();
    wait::until("the keys to be there", wait::SOON, || fetches(&agent, "fetched") >= 2.0);
    wait::until("them to be fetched again", wait::SOON, || fetches(&agent, "fetched") >= 4.0);
    assert!(began.elapsed() >= Duration::from_secs(4), "{:?}", began.elapsed());
    // From now on they hold for an hour.
    issuer.say("/keys", 200, "cache-control: max-age=3600", KEYS);
    wait::until("both to have heard", wait::SOON, || fetches(&agent, "fetched") >= 6.0);
    let asked = issuer.asked("/keys");
    thread::sleep(Duration::from_secs(7));
    assert_eq!(issuer.asked("/keys"), asked);
    assert_eq!(status(&asks(&pair, 0)), "200");
}
