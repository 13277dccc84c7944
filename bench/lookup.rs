//! The cost of one source decision by the number of rules: `cargo bench --bench lookup`.

mod decision;

use decision::Decision;

fn main() {
    println!("{:>8}  {:>12}  {:>13}  {:>10}", "rules", "trusted, ns", "untrusted, ns", "build, ms");
    for rules in [10, 1_000, 100_000] {
        let Decision { trusted_ns, untrusted_ns, build_ms } = Decision::measure(rules, 100_000, 21);
        println!("{rules:>8}  {trusted_ns:>12.0}  {untrusted_ns:>13.0}  {build_ms:>10.1}");
    }
}
