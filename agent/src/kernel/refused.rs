//! What a kernel lacks, by what its verifier says of a program that it refuses: the program itself is the probe, so that nothing is asked
//! for that no program needs, and nothing is forgotten.

use std::fmt;

use aya::programs::ProgramError;

/// A program that the running kernel refused for something that it lacks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// Name of the program.
    pub program: String,
    /// What is lacking, and since when Linux has it.
    pub lacks: String,
}

impl Refused {
    /// The error itself when it says of nothing that it is lacking: no right, no memory, or a program that the verifier takes for wrong.
    pub fn read(program: &str, error: ProgramError) -> Result<Self, ProgramError> {
        let lacks = match &error {
            ProgramError::LoadError { verifier_log, .. } => lacking(&verifier_log.to_string()),
            _ => None,
        };
        lacks.map(|lacks| Self { program: program.to_owned(), lacks }).ok_or(error)
    }

    /// Whatever the error says: of a program that the agent does without.
    pub fn for_any_reason(program: &str, error: &ProgramError) -> Self {
        let lacks = match error {
            ProgramError::LoadError { verifier_log, .. } => lacking(&verifier_log.to_string()),
            _ => None,
        };
        let lacks = lacks.unwrap_or_else(|| format!("what this kernel does not give it: {}", reason(error)));
        Self { program: program.to_owned(), lacks }
    }
}

/// Bytes of a verifier's sentence that are told: its log may have a million lines.
const SENTENCE_BYTES_MAX: usize = 200;

/// Why a program was refused, in one line: what the verifier said last, or else what the call gave.
pub fn reason(error: &ProgramError) -> String {
    let ProgramError::LoadError { io_error, verifier_log } = error else { return error.to_string() };
    let log = verifier_log.to_string();
    match sentence(&log) {
        Some(sentence) => format!("{io_error}, and the verifier says: {sentence}"),
        None => io_error.to_string(),
    }
}

/// The verdict is the last line but for those that tell what it cost.
fn sentence(log: &str) -> Option<String> {
    let costs =
        |line: &&str| ["processed ", "verification time", "stack depth"].iter().any(|word| line.starts_with(word));
    let line = log.lines().map(str::trim).rfind(|line| !line.is_empty() && !costs(line))?;
    let end = (0..=SENTENCE_BYTES_MAX.min(line.len())).rfind(|end| line.is_char_boundary(*end)).unwrap_or(0);
    Some(line[..end].to_owned())
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}` needs {}", self.program, self.lacks)
    }
}

/// All of them, each thing that is lacking once: `dial_v4`, `dial_v6` need this; `send_v4` needs that.
pub fn list(refused: &[Refused]) -> String {
    let mut lacks: Vec<&str> = refused.iter().map(|refused| refused.lacks.as_str()).collect();
    lacks.sort_unstable();
    lacks.dedup();
    let programs = |lack: &str| {
        let who = refused.iter().filter(|refused| refused.lacks == lack);
        who.map(|refused| format!("`{}`", refused.program)).collect::<Vec<_>>().join(", ")
    };
    lacks.iter().map(|lack| format!("{lack}, for {}", programs(lack))).collect::<Vec<_>>().join("; ")
}

/// Helpers that came late, or that a kernel may withhold: since when programs of our kinds may call them.
const HELPERS: [(&str, &str); 9] = [
    ("bpf_get_netns_cookie", "Linux 5.15 for every hook"),
    ("bpf_probe_read_kernel", "Linux 5.5, and no lockdown=confidentiality"),
    // What aya calls in its place where the kernel refuses it.
    ("bpf_probe_read", "Linux 5.5, and no lockdown=confidentiality"),
    ("bpf_ringbuf_reserve", "Linux 5.8"),
    ("bpf_ringbuf_output", "Linux 5.8"),
    ("bpf_skc_to_mptcp_sock", "Linux 5.19"),
    ("bpf_set_retval", "Linux 5.18"),
    ("bpf_get_retval", "Linux 5.18"),
    ("bpf_loop", "Linux 5.17"),
];

/// Sentences of the verifier (`kernel/bpf/verifier.c`), of kernels before and after the instruction or function that they are about.
const SENTENCES: [(&str, &str); 5] = [
    ("BPF_STX uses reserved fields", "atomic operations that give a value (Linux 5.12)"),
    ("BPF_ATOMIC uses invalid atomic opcode", "an atomic operation that this kernel does not know"),
    ("unknown opcode", "an instruction that this kernel does not know"),
    ("uses reserved fields", "a form of an instruction that this kernel does not know"),
    ("kernel function", "a kernel function that programs of this kind may not call here"),
];

fn lacking(log: &str) -> Option<String> {
    if let Some(helper) = refused_helper(log) {
        let since = HELPERS.iter().find(|(name, _)| *name == helper).map(|(_, since)| format!(" ({since})"));
        return Some(format!("{helper}(){}", since.unwrap_or_default()));
    }
    SENTENCES.iter().find(|(sentence, _)| log.contains(sentence)).map(|(_, lacks)| (*lacks).to_owned())
}

/// The helper in `unknown func bpf_x#1` and, since 6.12, `program of this type cannot use helper bpf_x#1`.
fn refused_helper(log: &str) -> Option<&str> {
    let after = |sentence: &str| log.split_once(sentence).map(|(_, rest)| rest);
    let rest = after("unknown func ").or_else(|| after("cannot use helper ")).or_else(|| after("invalid func "))?;
    rest.split(['#', '\n', ' ']).next().filter(|name| !name.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_long_log_one_sentence_is_told() {
        let log = format!(
            "{}R1 type=inv expected=ctx\nprocessed 9 insns (limit 1000000)\n\n",
            "0: (b7) r0 = 0\n".repeat(99_999)
        );
        assert_eq!(sentence(&log).as_deref(), Some("R1 type=inv expected=ctx"));
        assert_eq!(sentence("processed 9 insns\n"), None);
        assert_eq!(sentence(&"ä".repeat(1000)).map(|told| told.len()), Some(SENTENCE_BYTES_MAX));
    }

    #[test]
    fn each_thing_that_lacks_is_listed_once_with_the_programs_that_need_it() {
        let refused = |program: &str, lacks: &str| Refused { program: program.into(), lacks: lacks.into() };
        let all = [refused("dial_v4", "b"), refused("dial_v6", "b"), refused("send_v4", "a")];
        assert_eq!(list(&all), "a, for `send_v4`; b, for `dial_v4`, `dial_v6`");
    }

    #[test]
    fn what_a_verifier_does_not_know_has_a_name_and_a_version() {
        let cases = [
            (
                "BPF_STX uses reserved fields\nprocessed 0 insns",
                Some("atomic operations that give a value (Linux 5.12)"),
            ),
            (
                "0: (85) call bpf_get_netns_cookie#122\nunknown func bpf_get_netns_cookie#122\n",
                Some("bpf_get_netns_cookie() (Linux 5.15 for every hook)"),
            ),
            (
                "program of this type cannot use helper bpf_probe_read_kernel#113\n",
                Some("bpf_probe_read_kernel() (Linux 5.5, and no lockdown=confidentiality)"),
            ),
            ("unknown func bpf_probe_read#4\n", Some("bpf_probe_read() (Linux 5.5, and no lockdown=confidentiality)")),
            ("unknown func bpf_new_thing#300\n", Some("bpf_new_thing()")),
            ("R1 type=inv expected=ctx\nprocessed 9 insns", None),
        ];
        for (log, expected) in cases {
            assert_eq!(lacking(log).as_deref(), expected, "{log}");
        }
    }
}
