// IP addresses and networks as numbers, to sort them and to find out which denied source a new rule would admit.

function ipv4(text) {
  const match = /^(\d{1,3})\.(\d{1,3})\.(\d{1,3})\.(\d{1,3})$/.exec(text);
  if (!match) return null;
  let value = 0n;
  for (const part of match.slice(1)) {
    const byte = Number(part);
    if (byte > 255) return null;
    value = (value << 8n) | BigInt(byte);
  }
  return value;
}

function ipv6(text) {
  let rest = text;
  const tail = /^(.*:)(\d+\.\d+\.\d+\.\d+)$/.exec(rest);
  if (tail) {
    const value = ipv4(tail[2]);
    if (value === null) return null;
    rest = `${tail[1]}${(value >> 16n).toString(16)}:${(value & 0xffffn).toString(16)}`;
  }
  const halves = rest.split('::');
  if (halves.length > 2) return null;
  const groups = (half) => (half === '' ? [] : half.split(':'));
  const head = groups(halves[0]);
  const end = halves.length === 2 ? groups(halves[1]) : [];
  const missing = 8 - head.length - end.length;
  if (halves.length === 2 ? missing < 1 : missing !== 0) return null;
  let value = 0n;
  for (const group of [...head, ...Array(Math.max(0, missing)).fill('0'), ...end]) {
    if (!/^[0-9a-fA-F]{1,4}$/.test(group)) return null;
    value = (value << 16n) | BigInt(`0x${group}`);
  }
  return value;
}

/** An address or network, or `null`. */
export function parseNetwork(text) {
  const match = /^([0-9a-fA-F:.]+)(?:\/(\d{1,3}))?$/.exec(String(text ?? '').trim());
  if (!match) return null;
  const four = ipv4(match[1]);
  const value = four ?? ipv6(match[1]);
  if (value === null) return null;
  const bits = four === null ? 128 : 32;
  const prefix = match[2] === undefined ? bits : Number(match[2]);
  return prefix > bits ? null : { value, bits, prefix };
}

const mask = ({ bits, prefix }) => ((1n << BigInt(prefix)) - 1n) << BigInt(bits - prefix);

export function contains(network, address) {
  return (
    network.bits === address.bits &&
    network.prefix <= address.prefix &&
    ((network.value ^ address.value) & mask(network)) === 0n
  );
}

export const isEverything = (text) => parseNetwork(text)?.prefix === 0;

function print({ value, bits }) {
  if (bits === 32) return [24n, 16n, 8n, 0n].map((shift) => (value >> shift) & 255n).join('.');
  const groups = Array.from({ length: 8 }, (_, index) => ((value >> BigInt(112 - 16 * index)) & 0xffffn).toString(16));
  // RFC 5952: the longest run of zeros is shortened.
  const runs = [...groups.join(':').matchAll(/(?:^|:)0(?::0)+(?:$|(?=:))/g)];
  if (runs.length === 0) return groups.join(':');
  const longest = runs.reduce((best, run) => (run[0].length > best[0].length ? run : best));
  const text = groups.join(':');
  return `${text.slice(0, longest.index)}::${text.slice(longest.index + longest[0].length).replace(/^:/, '')}`;
}

/** The network of this prefix length around an address, as text. */
export function networkAround(text, prefix) {
  const address = parseNetwork(text);
  if (!address) return null;
  const network = { ...address, prefix };
  return `${print({ value: address.value & mask(network), bits: address.bits })}/${prefix}`;
}

/** Whether an address is one of its own machine. */
export const isLoopback = (text) => {
  const address = parseNetwork(text);
  if (!address) return false;
  return ['127.0.0.0/8', '::1', '::ffff:127.0.0.0/104'].some((each) => contains(parseNetwork(each), address));
};

/** How many addresses a network has, in words. */
export function sizeOf(text) {
  const network = parseNetwork(text);
  if (!network) return null;
  const free = network.bits - network.prefix;
  if (free === 0) return null;
  const raised = [...String(free)].map((digit) => '⁰¹²³⁴⁵⁶⁷⁸⁹'[Number(digit)]).join('');
  return free <= 32 ? (2 ** free).toLocaleString('en') : `2${raised}`;
}

/** A text whose order is that of the addresses. */
export function sortKey(text) {
  const network = parseNetwork(text);
  if (!network) return `9${String(text).toLowerCase()}`;
  const value = network.value.toString(16).padStart(32, '0');
  return `${network.bits === 32 ? 4 : 6}${value}${String(network.prefix).padStart(3, '0')}`;
}
