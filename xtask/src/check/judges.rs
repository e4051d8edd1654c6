//! Judges never touch the world: bytes, time and chance come in as arguments.

use super::{
    Finding,
    imports::JUDGES,
    source::{Source, has_word},
};

/// What reads the clock, the network, the disk or chance, or waits.
const WORLD: &[(&str, &str)] = &[
    ("Instant::now", "take the time as an argument"),
    ("SystemTime::now", "take the time as an argument"),
    ("TcpStream", "leave sockets to a room that handles"),
    ("TcpListener", "leave sockets to a room that handles"),
    ("UdpSocket", "leave sockets to a room that handles"),
    ("std::fs", "take bytes as an argument"),
    ("std::thread", "leave threads to node"),
    ("rand", "take chance as an argument"),
    ("fastrand", "take chance as an argument"),
    ("async", "a judge decides at once"),
    ("await", "a judge decides at once"),
];

pub fn check(source: &Source) -> Vec<Finding> {
    if !source.room().is_some_and(|room| JUDGES.contains(&room)) {
        return Vec::new();
    }
    let lines = source.shipped();
    let found = lines.flat_map(|(number, line)| {
        WORLD.iter().filter(move |(word, _)| has_word(line, word)).map(move |at| (number, at))
    });
    found
        .map(|(number, (word, remedy))| {
            Finding::new(&source.path, number, "judges touch nothing", format!("`{word}`: {remedy}"))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_judge_that_reads_the_world_is_found() {
        for (word, _) in WORLD {
            let found = check(&Source::new("agent/src/balance/round_robin.rs", format!("//! x\nlet x = {word} ();\n")));
            assert_eq!(found.len(), 1, "{word}");
            assert_eq!(found[0].line, 2);
        }
    }

    #[test]
    fn a_hand_may_and_so_may_a_judges_tests() {
        assert!(check(&Source::new("agent/src/ring.rs", "//! x\nlet x = Instant::now();\n")).is_empty());
        let tested = "//! x\n#[cfg(test)]\nmod tests {\n    fn f() { Instant::now(); }\n}\n";
        assert!(check(&Source::new("agent/src/route.rs", tested)).is_empty());
    }
}
