"""What a search gave as an address, written as browsers write it, and whether it may be fetched; How many may ask one host at a time, when it is asked again, and when it is left alone; What a server says in `X-Robots-Tag` about the use of its images; Connections that a deadline cuts off, and that never reach a private address; Fetches from strangers: session, redirects, retries, and what can go wrong"""

import ipaddress, os, random, re, socket, tempfile, threading, time
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from http.cookiejar import DefaultCookiePolicy
from urllib.parse import quote, unquote, urljoin, urlsplit

import idna, requests
from fastcore.basics import patch
from requests import exceptions
from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.exceptions import ProtocolError, ReadTimeoutError

from .. import __version__
from ..core.errors import ImageError, CatdogError

def _mend_host(host):
    "The name `host` in the letters that the network knows; ValueError for what is no name"
    host = unquote(host, errors='strict').lower()
    if not host.isascii():
        host = '.'.join(o if o.isascii() else f'xn--{o.encode("punycode").decode()}'
                        for o in idna.uts46_remap(host).split('.'))
    if host[:1] + host[-1:] == '[]': return f'[{ipaddress.IPv6Address(host[1:-1])}]'
    if not re.fullmatch(r"[a-z0-9._~!$&'()*+,;=-]+", host): raise ValueError(host)
    return host

def _mend_path(path):
    "`path`, which begins with a slash, without `.` and `..`, and with what is neither ASCII nor allowed as %XX"
    res,parts = [],path.split('/')[1:]
    for i,part in enumerate(parts):
        dots = part.lower().replace('%2e', '.')
        if dots == '..': res = res[:-1]
        elif dots != '.': res.append(part)
        if dots in ('.', '..') and i == len(parts) - 1: res.append('')
    return quote('/' + '/'.join(res), safe="%/!$&'()*+,;=:@~[]|")

_BLANKS = ''.join(map(chr, range(33)))

def mend_url(
    url:str # As a search engine gave it
) -> str: # As it is asked for: ASCII, with a host and a path
    "`url` as a browser would send it; `ImageError` for what is no http(s) address"
    text = re.sub('[\ud800-\udfff]', '\ufffd', re.sub(r'[\t\r\n]', '', url.strip(_BLANKS)))
    match = re.fullmatch(r'(?is)(?:(https?):[/\\]*|[/\\]{2,})([^/\\?#]*)([^?#]*)(\?[^#]*)?(#.*)?', text)
    if match:
        scheme,host,path,query,_ = match.groups(default='')
        name,_,port = (host := host.rpartition('@')[2]).partition(':') if '[' not in host else host.rpartition(':')
        if host.endswith(']'): name,port = host,''
        try:
            if re.fullmatch('[0-9]*', port) and int(port or 0) < 65536:
                return (f'{scheme.lower() or "https"}://{_mend_host(name)}{port and ":" + port}'
                        + _mend_path(path.replace('\\', '/') or '/') + quote(query, safe="%!$&()*+,;=:@~[]|/?`{}^\\"))
        except (ValueError, idna.IDNAError): pass
    raise ImageError(f'{url[:200]!r} is not an http(s) address', 'refused')

def join_url(
    base:str, # Where the redirect stood, from `mend_url`
    location:str # Where it leads, as its server says
) -> str: # As from `mend_url`
    "The address that `location` means at `base`; `ImageError` when it is no http(s) address"
    text = location.strip(_BLANKS)
    if re.match(r'(?i)https?:[/\\]{2}', text): return mend_url(text)
    head,rest = re.fullmatch(r'(?s)([^?#]*)(.*)', text).groups()
    try: return mend_url(urljoin(base, head.replace('\\', '/') + rest))
    except ValueError as e: raise e if isinstance(e, ImageError) else ImageError('it redirects to no address', 'refused')

_NAT64 = ipaddress.ip_network('64:ff9b::/96')

def _is_private(address):
    "Is the IP `address` in this machine or its network, rather than on the internet?"
    ip = ipaddress.ip_address(address)
    if ip.version == 6:
        if ip in _NAT64: ip = ipaddress.IPv4Address(int(ip) & 0xffffffff)
        else: ip = ip.ipv4_mapped or ip.sixtofour or ip
    return not ip.is_global or ip.is_multicast

def refuse_private(
    address:str # An IP address, version 4 or 6
):
    "`ImageError` when `address` is in a private network and `CATDOG_ALLOW_PRIVATE` does not allow it"
    if os.environ.get('CATDOG_ALLOW_PRIVATE') != '1' and _is_private(address):
        raise ImageError(f'{address} is in a private network: set CATDOG_ALLOW_PRIVATE=1 if you mean it', 'refused')

def check_url(
    url:str # Any text
) -> str: # Its host
    "The host of `url`; `ImageError` for what is not http(s), and for an address that is private on the face of it"
    host = urlsplit(mend_url(url)).hostname
    try: refuse_private('127.0.0.1' if host.rstrip('.').endswith('localhost') else str(ipaddress.ip_address(host)))
    except ImageError: raise
    except ValueError: pass   # a name: its connection will be checked
    return host

PER_HOST = 8             # requests to one host at a time; a browser makes six
TRIES = 3                # how often a busy server is asked in all
MAX_WAIT = 30            # seconds; a server that wants us to wait longer is left alone
GIVE_UP = 3              # so many refusals after the first, or unanswered requests, in a row: the host is left alone
BUSY = (429, 500, 502, 503, 504)   # HTTP statuses after which it may work the next time

def _retry_after(header):
    "Seconds that a `Retry-After` header asks for (it may be a number or a date), or None"
    try: return max(0., float(header))
    except (TypeError, ValueError): pass
    try: return max(0., (parsedate_to_datetime(header) - datetime.now(timezone.utc)).total_seconds())
    except (TypeError, ValueError): return None

def retry_delay(
    retry_after:str|None, # The `Retry-After` header of the answer
    attempt:int, # Which attempt has failed; 0 is the first
    max_wait:float=MAX_WAIT # The longest to wait, in seconds
) -> float|None: # Seconds to wait; None: do not ask again
    "Seconds to wait after failed `attempt`; None when it was the last one, or when `retry_after` is over `max_wait`"
    seconds = _retry_after(retry_after)
    if seconds is None: seconds = random.uniform(.75, 1.25) * 2**attempt/2
    return seconds if attempt < TRIES-1 and seconds <= max_wait else None

_WIKIMEDIA = '''wikimedia wikipedia wikidata wiktionary wikibooks wikisource wikivoyage wikiquote wikinews wikiversity
    wikifunctions mediawiki wmfusercontent wmcloud wmflabs toolforge'''.split()

def site_of(
    host:str # Its name, as in an address
) -> tuple[str,int]: # A name that is the same for all hosts with one limit, and how many requests it allows at a time
    "What `host` shares its limit with, and that limit"
    name = host.lower().rstrip('.')
    if name.rpartition('.')[0].rpartition('.')[2] in _WIKIMEDIA and name.endswith('.org'): return 'wikimedia.org',2
    return name,PER_HOST

@dataclass
class _Site:
    most:int                # Requests at a time, now
    limit:int               # And at best
    now:int=0               # Requests under way
    until:float=0           # Nobody may begin before
    refused:float=None      # When it refused first since it last answered
    refusals:int=0          # How often it refused requests that began later
    unanswered:int=0        # How many requests in a row it did not answer
    given_up:tuple=None     # Why it is left alone: reason and status

class HostLimit:
    "At most so many at a time at one host, and nobody while it asks us to wait, or when it is left alone"
    def __init__(self,
        stopped:threading.Event # Ends all waiting when it is set
    ): self.stopped,self.changed,self.sites = stopped,threading.Condition(),{}

    def _site(self, host):
        name,limit = site_of(host)
        return self.sites.setdefault(name, _Site(limit, limit))

    @contextmanager
    def at(self,
        host:str, # Its name, as in an address
        end:float=float('inf') # `time.monotonic()` after which it is too late
    ): # When it began, for `refused`
        "Holds one of the places at `host`; waits for it, or `ImageError` says why not"
        with self.changed:
            o = self._site(host)
            while not self.stopped.is_set():
                now = time.monotonic()
                if o.given_up: raise ImageError(*o.given_up)
                if now > end: raise ImageError('there was no time left for it', 'timed-out')
                if o.now < o.most and now >= o.until: break
                self.changed.wait(min(.5, max(.01, o.until - now)) if o.until > now else .5)
            o.now += 1
        try: yield time.monotonic()
        finally:
            with self.changed:
                o.now -= 1
                self.changed.notify_all()

@patch
def pause(self:HostLimit,
    host:str, # As for `at`
    seconds:float # How long nobody may begin there
):
    "Let nobody begin at `host` for `seconds`"
    with self.changed:
        o = self._site(host)
        o.until,o.most = max(o.until, time.monotonic() + seconds),max(1, o.most//2)

@patch
def answered(self:HostLimit,
    host:str # As for `at`
):
    "Note that `host` gave an answer, whatever it was"
    with self.changed:
        o = self._site(host)
        o.most,o.refused,o.refusals,o.unanswered = min(o.limit, o.most + 1),None,0,0

@patch
def refused(self:HostLimit,
    host:str, # As for `at`
    began:float, # When the request began, as `at` says
    retry_after:str|None, # The `Retry-After` header of the answer
    status:str='http-429' # Of the answer, as for `ImageError`
):
    "Note that `host` answered that it is asked too often"
    o,seconds = self._site(host),_retry_after(retry_after)
    with self.changed:
        if o.refused is None: o.refused = time.monotonic()
        elif began > o.refused: o.refusals += 1
        if o.refusals >= GIVE_UP or (seconds or 0) > MAX_WAIT:
            o.given_up = f'{host} asks again and again to be left alone ({status[5:]}): try again later',status
            self.changed.notify_all()
    self.pause(host, 2**o.refusals if seconds is None else seconds)

@patch
def unanswered(self:HostLimit,
    host:str, # As for `at`
    reason:str, # As for `ImageError`
    status:str # As for `ImageError`
):
    "Note that `host` could not be reached, or took too long"
    o = self._site(host)
    with self.changed:
        o.unanswered += 1
        if o.unanswered >= GIVE_UP and not o.given_up:
            o.given_up = f'{reason}, as for the {o.unanswered} before it',status
            self.changed.notify_all()

def _has_passed(text):
    "Is the date in `text` over?"
    for parse in (parsedate_to_datetime, lambda o: parsedate_to_datetime(f'{o} 00:00:00'),
                  lambda o: datetime.fromisoformat(o.strip().replace('z', '+00:00'))):
        try: when = parse(text)
        except (ValueError, TypeError, IndexError, OverflowError): continue
        return (when if when.tzinfo else when.replace(tzinfo=timezone.utc)) < datetime.now(timezone.utc)
    return False

OPT_OUTS = ('noai', 'noimageai', 'noml', 'noindex', 'noimageindex', 'none', 'unavailable_after')
_WITH_VALUE = r'max-[a-z-]+|unavailable_after'
_A_RULE = rf'(?:all|index|follow|archive|indexifembedded|no[a-z]+)$|(?:{_WITH_VALUE})(?::|$)'

def _rules(tag):
    "(word, value) for each rule in the header `tag`, in small letters, that is for us or for everybody"
    date = r'((?:[a-z]+,\s*)?[^,;]*)'   # the name of its day has a comma
    tag,dates = tag.lower(),re.findall(rf'unavailable_after\s*:\s*{date}', tag.lower())
    tag = re.sub(r'\s*:\s*', ':', re.sub(rf'(unavailable_after)\s*:\s*{date}', r'\1:date ', tag))
    for_us = True
    for word in filter(None, re.split(r'[,;\s]+', tag)):
        name,_,rest = word.partition(':')
        if not re.fullmatch(_WITH_VALUE, name) and re.match(_A_RULE, rest):
            for_us,(name,_,rest) = name.partition('/')[0] in ('catdog', '*'),rest.partition(':')
        if name == 'unavailable_after' and rest: rest = dates.pop(0)
        if for_us: yield name,rest

def opt_out(
    tags:list, # The `X-Robots-Tag` headers of an answer
    ignored:tuple=() # Words of `OPT_OUTS` that do not count
) -> str|None: # One of `OPT_OUTS`
    "The word in one of `tags` that asks us to leave the image alone, or None"
    for tag in tags:
        for name,value in _rules(tag):
            if name not in OPT_OUTS or name in ignored: continue
            if name != 'unavailable_after' or _has_passed(value): return name

def check_ignored(
    words # Of `OPT_OUTS`: a list, or one of them; None for none
) -> tuple: # The words
    "`words` in small letters; `CatdogError` when one of them is no opt-out"
    words = tuple(o.lower() for o in ([words] if isinstance(words, str) else words or ()))
    if unknown := [o for o in words if o not in OPT_OUTS]:
        raise CatdogError(f'{unknown[0]!r} is no rule of X-Robots-Tag that we respect: there are {", ".join(OPT_OUTS)}')
    return words

_SOCKETS,_TARGETS = {},{}   # thread -> the socket that it waits for, and what it asks for, as it was given

class Deadlines:
    "Cuts off what takes longer than `seconds`, and everything after `stop`"
    def __init__(self,
        seconds:float # For a whole fetch, from the connection to the last byte
    ):
        self.seconds,self.ends,self.stopped = seconds,{},threading.Event()
        threading.Thread(target=self._watch, daemon=True).start()

    @contextmanager
    def running(self):
        "For this thread's next fetch; gives a function that says whether its time is up"
        me,end = threading.get_ident(),time.monotonic() + self.seconds
        self.ends[me] = end
        try: yield lambda: self.stopped.is_set() or time.monotonic() > end
        finally:
            for o in (self.ends, _SOCKETS, _TARGETS): o.pop(me, None)

    def stop(self):
        "Cut off all that is under way"
        self.stopped.set()

    def _watch(self):
        while not self.stopped.wait(.1): self._cut(time.monotonic())
        while self.ends:   # again and again: one may have been about to connect when we stopped
            self._cut(float('inf'))
            time.sleep(.1)

    def _cut(self, now):
        for me,end in list(self.ends.items()):
            if end < now and (sock := _SOCKETS.get(me)):
                try: socket.socket.shutdown(sock, socket.SHUT_RDWR)
                except OSError: pass   # it has just ended by itself

class _Watched:
    "A urllib3 connection that `Deadlines` can cut off"
    def _new_conn(self):
        sock = _SOCKETS[threading.get_ident()] = super()._new_conn()
        return sock

    def putrequest(self, method, url, *args, **kwargs):
        super().putrequest(method, _TARGETS.pop(threading.get_ident(), url), *args, **kwargs)

    def getresponse(self, *args, **kwargs):
        _SOCKETS[threading.get_ident()] = self.sock
        return super().getresponse(*args, **kwargs)

class _Guarded(_Watched):
    "One that refuses private addresses too"
    def _new_conn(self):
        sock = super()._new_conn()
        try: refuse_private(sock.getpeername()[0])
        except BaseException: sock.close(); raise
        return sock

def _pools(kind):
    "Scheme -> class of connection pools whose connections are of `kind` too"
    def _pool(pool, connection):
        return type('Pool', (pool,), {'ConnectionCls': type('Connection', (kind, connection), {})})
    return {'http': _pool(HTTPConnectionPool, HTTPConnection), 'https': _pool(HTTPSConnectionPool, HTTPSConnection)}

class WatchedAdapter(HTTPAdapter):
    "Makes a `requests.Session` one that `Deadlines` can cut off: `session.mount('http://', WatchedAdapter())`"
    pools,proxy_pools = _pools(_Watched),_pools(_Watched)

    def init_poolmanager(self,
        *args, # As for requests' own, like `kwargs`
        **kwargs
    ):
        "Connections of ours in its pools"
        super().init_poolmanager(*args, **kwargs)
        self.poolmanager.pool_classes_by_scheme = self.pools

    def proxy_manager_for(self,
        proxy:str, # Its address
        **kwargs # As for requests' own
    ): # A `urllib3.ProxyManager`, with connections of ours in its pools
        "Likewise by way of `proxy`"
        manager = super().proxy_manager_for(proxy, **kwargs)
        if not proxy.lower().startswith('socks'): manager.pool_classes_by_scheme = self.proxy_pools
        return manager

class GuardedAdapter(WatchedAdapter):
    "A `WatchedAdapter` that refuses private addresses; the address of a request must be one from `mend_url`"
    pools = _pools(_Guarded)

    def request_url(self,
        request, # The `PreparedRequest`
        proxies:dict # Scheme -> address
    ) -> str: # What urllib3 is asked for
        "The address of `request`; what it sends to the host is kept as it was given"
        url = super().request_url(request, proxies)
        target = '/' + request.url.split('/', 3)[3] if url.startswith('/') else request.url
        _TARGETS[threading.get_ident()] = target
        return url

    def send(self,
        request, # The `PreparedRequest`
        **kwargs # As for requests' own
    ): # The `requests.Response`
        "Send `request`, unless `check_url` refuses its address"
        check_url(request.url)
        return super().send(request, **kwargs)

MAX_BYTES = 30_000_000   # of one file; a photograph straight from a camera has 5 to 20 million
MAX_REDIRECTS = 5        # of one fetch
MAX_REFUSALS = 6         # so often one image's host may say that it is asked too often

def positive_int(
    o # Anything
) -> int|None: # From 1 to 999,999,999, or None
    "`o` as a positive number of a sensible size, or None"
    try: return int(o) if 0 < int(o) < 10**9 else None
    except (TypeError, ValueError, OverflowError): return None

CONTACT = 'https://catdog.example'   # the project's address; .example: it has none yet

def user_agent() -> str: # ASCII, on one line
    "Who we are, and where to complain: at `CATDOG_CONTACT`, or else at `CONTACT`"
    contact = ' '.join((os.environ.get('CATDOG_CONTACT') or CONTACT).encode('ascii', 'replace').decode().split())
    return (f'catdog/{__version__} ({contact}; collects images for an image classifier) '
            f'python-requests/{requests.__version__}')

class Session(requests.Session):
    "A `requests.Session` that says who we are and sends nobody a password or a cookie"
    def __init__(self):
        super().__init__()
        self.headers['User-Agent'] = user_agent()
        self.auth = lambda request: request   # without one, it would read ~/.netrc
        self.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))

    def rebuild_auth(self,
        prepared_request, # The next one of requests
        response # The answer that leads there
    ):
        "What a redirect to `prepared_request` does not take along: keys, when it leads to another host"
        if self.should_strip_auth(response.request.url, prepared_request.url):
            for o in ('Authorization', 'Ocp-Apim-Subscription-Key'): prepared_request.headers.pop(o, None)

def _image_session(workers):
    "A session for `workers` threads"
    s = Session()
    s.headers.update({'Accept': 'image/*', 'Accept-Encoding': 'identity'})
    for scheme in ('http://', 'https://'):
        s.mount(scheme, GuardedAdapter(pool_connections=4*workers, pool_maxsize=workers))
    return s

def no_local_proxy() -> dict: # The `proxies` of a request
    "What tells `requests` never to ask a proxy for what is on this machine"
    mine = os.environ.get('no_proxy') or os.environ.get('NO_PROXY')
    return {'no_proxy': ','.join(filter(None, [mine, 'localhost,127.0.0.1,::1']))}

class TryAgain(ImageError):
    "It may work the next time"
    def __init__(self,
        reason:str, # As for `ImageError`
        status:str, # As for `ImageError`
        retry_after:str=None # The `Retry-After` header, if there is one
    ):
        super().__init__(reason, status)
        self.retry_after = retry_after

def _bad_image(e, is_late):
    "The exception `e` of a fetch, whose deadline has passed if `is_late`, as a `ImageError`"
    inner = e.args[0] if e.args else None
    if is_late or isinstance(e, requests.Timeout) or isinstance(inner, ReadTimeoutError):
        return ImageError('its server took too long', 'timed-out')
    if isinstance(e, exceptions.ChunkedEncodingError): return TryAgain('the connection broke off', 'truncated')
    if isinstance(e, (exceptions.InvalidSchema, exceptions.InvalidURL, exceptions.MissingSchema)):
        return ImageError('not an http(s) address, or a redirect to such', 'refused')
    if isinstance(inner, ProtocolError): return TryAgain('its server hung up', 'unreachable')
    if isinstance(e, requests.ConnectionError):
        cause = type(getattr(inner, 'reason', inner)).__name__
        return ImageError(f'its server cannot be reached ({cause})', 'unreachable')
    return ImageError(f'it cannot be fetched ({type(e).__name__})', 'unreachable')

def _check_answer(r, ignored):
    "`ImageError` when the answer `r` is no image that we may have; `TryAgain` when its server is busy"
    answered = f'its server answered {r.status_code}',f'http-{r.status_code}'
    if r.status_code in BUSY: raise TryAgain(*answered, r.headers.get('Retry-After'))
    if not r.ok: raise ImageError(*answered)
    if word := opt_out(r.raw.headers.getlist('X-Robots-Tag'), ignored):
        raise ImageError(f'its server asks not to use it for this (X-Robots-Tag: {word})', 'refused')

def _check_bytes(n, most):
    if n > most: raise ImageError(f'more than {most:,} bytes', 'too-large')

def read_body(
    r:requests.Response, # Asked for with `stream=True`
    most:int=MAX_BYTES # How many bytes it may have
): # A binary file, at its beginning; close it
    "The body of the answer `r` as a file, in memory while it is small; `ImageError` when it is too large"
    _check_bytes(positive_int(r.headers.get('Content-Length')) or 0, most)
    f = tempfile.SpooledTemporaryFile(2**21)
    try:
        for chunk in r.iter_content(2**16):
            f.write(chunk)
            _check_bytes(f.tell(), most)
    except BaseException: f.close(); raise
    f.seek(0)
    return f

class Fetcher:
    "Fetches from the web, from any thread: one session, a deadline for each fetch, a limit for each host"
    def __init__(self,
        workers:int, # How many threads fetch at once
        timeout:float, # Seconds to wait for the next piece; a whole fetch may take three times as long
        ignore_robots=None # Rules of `OPT_OUTS` to ignore, if you have the right to
    ):
        self.session,self.timeout,self.deadlines = _image_session(workers),timeout,Deadlines(3*timeout)
        self.workers,self.ignored = workers,check_ignored(ignore_robots)
        self.host_limit = HostLimit(self.deadlines.stopped)

    def close(self):
        "Cut off what is under way, and close the connections"
        self.deadlines.stop()
        self.session.close()

    def __enter__(self): return self
    def __exit__(self, *args): self.close()

@patch
def _send(self:Fetcher, url):
    "The answer to a request for `url`, its body not yet read"
    request = self.session.prepare_request(requests.Request('GET', url))
    request.url = url   # exactly so
    settings = self.session.merge_environment_settings(url, no_local_proxy(), True, None, None)
    return self.session.get_adapter(url).send(request, timeout=(min(self.timeout, 5), self.timeout), **settings)

@patch
def _fetch_once(self:Fetcher, url):
    "What is at `url`, as a file, or the address that it redirects to"
    with self.deadlines.running() as is_late:
        try:
            if is_late(): raise requests.Timeout   # stopped
            with self._send(url) as r:
                if r.is_redirect: return join_url(url, self.session.get_redirect_target(r))
                _check_answer(r, self.ignored)
                f = read_body(r)
            if not is_late(): return f
            raise requests.Timeout
        except ImageError: raise
        # requests, urllib3, http.client, ssl and idna have a dozen ways each to fail on what a server does
        except Exception as e: raise _bad_image(e, is_late()) from None

def _is_refusal(e): return e.status == 'http-429' or e.status == 'http-503' and e.retry_after is not None

@patch
def _fetch_politely(self:Fetcher, url, end):
    "`_fetch_once` when its host may be asked, before `end`"
    host = check_url(url)
    with self.host_limit.at(host, end) as began:
        try: res = self._fetch_once(url)
        except ImageError as e:
            if _is_refusal(e): self.host_limit.refused(host, began, e.retry_after, e.status)
            elif e.status in ('timed-out', 'unreachable'): self.host_limit.unanswered(host, e.reason, e.status)
            else: self.host_limit.answered(host)
            raise
        self.host_limit.answered(host)
        return res

@patch
def _follow(self:Fetcher, url, end):
    "What is at `url`, or where it redirects to"
    for _ in range(MAX_REDIRECTS + 1):
        if not isinstance(url := self._fetch_politely(url, end), str): return url
    raise ImageError('its server sends one in circles', 'refused')

@patch
def fetch(self:Fetcher,
    url:str, # What to fetch, as a search engine gave it
    end:float=float('inf') # `time.monotonic()` after which nothing more is begun
): # A binary file, at its beginning; close it
    "What is at `url`, as a file; `ImageError` says why not"
    url,failures,refusals = mend_url(url),0,0
    while True:
        try: return self._follow(url, end)
        except TryAgain as e:
            if self.deadlines.stopped.is_set(): raise
            if _is_refusal(e):
                refusals += 1
                if refusals > MAX_REFUSALS: raise
                continue
            seconds = retry_delay(e.retry_after, failures)
            if seconds is None: raise
            failures += 1
            self.deadlines.stopped.wait(seconds)
