//! What one source decision costs, by the number of rules: `cargo bench --bench lookup`.

mod decision;

use decision::Decision;

fn main() {
    println!("{:>8}  {:>12}  {:>12}  {:>10}", "rules", "trusted, ns", "stranger, ns", "build, ms");
    for rules in [10, 1_000, 100_000] {
        let Decision { trusted_ns, stranger_ns, build_ms } = Decision::measure(rules, 100_000, 21);
        println!("{rules:>8}  {trusted_ns:>12.0}  {stranger_ns:>12.0}  {build_ms:>10.1}");
    }
}
