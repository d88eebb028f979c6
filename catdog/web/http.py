"""Fetch images from unknown servers: URLs as browsers read them, no private addresses, limits per host, retries,
deadlines, and the opt-outs that a server sends"""

import ipaddress, os, random, re, tempfile, threading, time
from contextlib import contextmanager
from dataclasses import dataclass
from http.cookiejar import DefaultCookiePolicy
from urllib.parse import urljoin, urlsplit
import requests
from requests.adapters import HTTPAdapter
from requests.utils import get_environ_proxies, select_proxy
from urllib3 import Retry
from urllib3.exceptions import HTTPError, InvalidHeader, ProtocolError, ReadTimeoutError
from urllib3.poolmanager import pool_classes_by_scheme
from .. import __version__
from ..core.errors import CatdogError, FetchError, ImageError

_PER_HOST = 8             # connections to one host; browsers open six
TRIES = 3                # requests for one image while its server fails
_MAX_REFUSALS = 6         # refusals (429, or 503 with Retry-After) of one image before it is given up
_GIVE_UP = 3              # refusals or unanswered requests in a row before no more are sent to a host
_MAX_WAIT = 30            # seconds; the longest pause that a server may ask for
BUSY = (429, 500, 502, 503, 504)   # statuses after which a request may succeed later
_MAX_BYTES = 30_000_000   # of one image; a photo straight from a camera has 5 to 20 million
_MAX_REDIRECTS = 5
_ANSWER_SECONDS,_ANSWER_BYTES = 30,20_000_000   # limits of one answer of a search engine

def clean_url(
    url:str, # A URL as a search engine or a redirect gave it
    base:str=None # The URL that it is relative to; default: it must be absolute
) -> str: # ASCII, with a host and a path, without user name and fragment
    "Return `url` as it is requested; raise `FetchError` if it is not an http(s) URL"
    text = re.sub(r'[\t\r\n]', '', url.strip(''.join(map(chr, range(33))))).encode('utf8', 'replace').decode()
    text = re.sub('%(?![0-9a-fA-F]{2})', '%25', text)   # or requests would escape each % again
    try:
        text,request = urljoin(base or 'https:', text.replace('\\', '/')),requests.PreparedRequest()
        request.prepare_url(text, None)
        o = urlsplit(request.url)
        if o.scheme in ('http', 'https') and o.hostname:
            return o._replace(netloc=o.netloc.rpartition('@')[2], fragment='').geturl()
    except (ValueError, HTTPError): pass   # those of requests are ValueErrors
    raise FetchError(f'{url[:200]!r} is not an http(s) URL', 'invalid')

def _is_private(address):
    ip = ipaddress.ip_address(address)
    if ip.version == 6:
        if ip in ipaddress.ip_network('64:ff9b::/96'): ip = ipaddress.IPv4Address(int(ip) & 0xffffffff)   # NAT64
        else: ip = ip.ipv4_mapped or ip.sixtofour or ip
    return not ip.is_global or ip.is_multicast

def _check_address(address):
    "Raise `FetchError` if the IP `address` is private, unless `CATDOG_ALLOW_PRIVATE` is 1"
    if os.environ.get('CATDOG_ALLOW_PRIVATE') != '1' and _is_private(address):
        raise FetchError(f'{address} is in a private network: set CATDOG_ALLOW_PRIVATE=1 to allow it', 'refused')

def _check_host(url):
    "Return the host of `url`, from `clean_url`; raise `FetchError` if it is localhost or a private IP address"
    host = urlsplit(url).hostname
    try: address = str(ipaddress.ip_address('127.0.0.1' if host.rstrip('.').endswith('localhost') else host))
    except ValueError: return host   # a name: its address is checked when it is connected to
    _check_address(address)
    return host

_OPT_OUTS = ('noai', 'noimageai', 'noml', 'noindex', 'noimageindex', 'none', 'tdm-reservation')

def _opt_out(headers, ignored=()):
    """Return the rule of `_OPT_OUTS` by which a server forbids the use of its image, or None

    `X-Robots-Tag` as in https://developers.google.com/search/docs/crawling-indexing/robots-meta-tag, with noai and
    noml; `TDM-Reservation` as in https://www.w3.org/community/reports/tdmrep/CG-FINAL-tdmrep-20240510/"""
    if headers.get('TDM-Reservation', '').strip() == '1' and 'tdm-reservation' not in ignored: return 'tdm-reservation'
    for tag in headers.getlist('X-Robots-Tag'):
        for_us = True
        for rule in re.split('[,;]', tag.lower()):
            name,_,value = map(str.strip, rule.partition(':'))
            if value and re.fullmatch(r'(?!max-|unavailable_after$)[a-z*][\w.-]*', name):   # the name of a crawler
                for_us,name = name in ('catdog', '*'),value
            if for_us and name in _OPT_OUTS and name not in ignored: return name

class _Public:
    "A urllib3 connection that refuses private addresses after DNS, whatever the name resolved to before"
    def _new_conn(self):
        sock = super()._new_conn()
        try: _check_address(sock.getpeername()[0])
        except BaseException: sock.close(); raise
        return sock

_PUBLIC_POOLS = {scheme: type('Pool', (o,), {'ConnectionCls': type('Connection', (_Public, o.ConnectionCls), {})})
                 for scheme,o in pool_classes_by_scheme.items()}

def _user_agent():
    contact = ' '.join(os.environ.get('CATDOG_CONTACT', '').encode('ascii', 'replace').decode().split())
    return (f'catdog/{__version__} ({contact and contact + "; "}collects images for an image classifier) '
            f'python-requests/{requests.__version__}')

def _proxies(url):
    "Return the proxies for `url` in the environment: scheme -> URL; none for hosts in `NO_PROXY` and this machine"
    direct = (os.environ.get('no_proxy') or os.environ.get('NO_PROXY') or '').strip()
    found = get_environ_proxies(url, no_proxy=direct if direct == '*' else f'{direct},localhost,127.0.0.1,::1')
    return {k: o.strip() if '://' in o else f'http://{o.strip()}' for k,o in found.items()}   # proxy:3128, as in curl

def proxy_for(
    url:str # URL to request
) -> str|None: # Its URL
    "Return the proxy for `url` in `HTTP_PROXY`, `HTTPS_PROXY` or `ALL_PROXY`, or None"
    return select_proxy(url, _proxies(url))

class _Session(requests.Session):
    "A session for `workers` threads that identifies itself and sends neither passwords nor cookies"
    def __init__(self, public=True, workers=1):   # public: refuse private addresses
        super().__init__()
        self.headers['User-Agent'] = _user_agent()
        self.auth = lambda request: request   # otherwise requests reads ~/.netrc
        self.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))
        for o in ('http://', 'https://'):
            self.mount(o, HTTPAdapter(pool_connections=4*workers, pool_maxsize=workers))
            if public: self.adapters[o].poolmanager.pool_classes_by_scheme = _PUBLIC_POOLS
    def open(self, url, timeout, **kwargs):
        "Return the answer to one GET request; requests' own `get` reads the body of a redirect, however long it is"
        request = self.prepare_request(requests.Request('GET', url, **kwargs))
        settings = self.merge_environment_settings(request.url, {}, True, None, None)
        settings['proxies'] = _proxies(request.url)   # requests makes `proxy:///3128` of proxy:3128
        return self.get_adapter(request.url).send(request, timeout=timeout, **settings)

class _TryAgain(FetchError):
    "A request that failed, and may succeed later"
    def __init__(self, text, reason, retry_after=None, refused=False, answered=True):
        super().__init__(text, reason)
        # the seconds that the server asks to wait, or None; whether it asks for fewer requests; whether it answered
        self.retry_after,self.refused,self.answered = retry_after,refused,answered

def _retry_after(r):
    try: return Retry().get_retry_after(r.raw)
    except (InvalidHeader, ValueError): return None   # a year above 9999

def retry_delay(
    retry_after:float|None, # Seconds that the server asks to wait, or None
    attempt:int # Requests that failed before this one
) -> float: # Seconds
    "Return how long to wait after a failed request: as the server asks, or an exponential backoff with jitter"
    return random.uniform(.75, 1.25) * 2**attempt/2 if retry_after is None else retry_after

def _read_body(r, end, max_bytes):
    "Return the body of `r` as a file, in memory while it is small; raise `ImageError` if it is larger than `max_bytes`"
    f = tempfile.SpooledTemporaryFile(2**21)
    try:
        size = r.raw.length_remaining or 0
        while True:
            if max(size, f.tell()) > max_bytes: raise ImageError(f'more than {max_bytes:,} bytes', 'too-large')
            # `read1` returns what has arrived; `iter_content` would wait for a whole chunk, however slowly it comes
            if not (chunk := r.raw.read1(2**16, decode_content=True)): break
            f.write(chunk)
            if time.monotonic() > end: raise requests.Timeout
    except BaseException: f.close(); raise
    f.seek(0)
    return f

def _fetch_error(e):
    if isinstance(e, (FetchError, ImageError)): return e
    inner = e.args[0] if e.args else None
    if isinstance(e, (requests.Timeout, ReadTimeoutError)) or isinstance(inner, ReadTimeoutError):
        return FetchError('its server took too long', 'timeout')
    if 'SOCKS' in str(e): return FetchError('a SOCKS proxy needs PySocks: pip install pysocks', 'unreachable')
    if isinstance(e, requests.exceptions.RequestException) and isinstance(e, ValueError):   # InvalidURL and the like
        return FetchError(f'not a URL that can be requested ({e})', 'invalid')
    if isinstance(e, HTTPError): return _TryAgain('the connection broke off', 'unreachable')
    if isinstance(inner, ProtocolError):
        return _TryAgain('its server closed the connection', 'unreachable', answered=False)
    cause = getattr(inner, 'reason', inner) if isinstance(e, requests.ConnectionError) else e
    return FetchError(f'its server cannot be reached ({type(cause).__name__})', 'unreachable')

def ask(
    url:str, # Endpoint of a service; its address may be private
    params:dict, # Parameters of the request
    headers:dict=None # Such as a key
) -> tuple[int,bytes,float|None]: # Status, body, and the seconds that `Retry-After` asks to wait
    "Return the answer of a service, also a redirect; raise `FetchError`, or `ImageError` if the answer is too large"
    end = time.monotonic() + _ANSWER_SECONDS
    try:
        with _Session(public=False) as session, session.open(url, (3.05, 20), params=params, headers=headers) as r:
            with _read_body(r, end, _ANSWER_BYTES) as f: return r.status_code,f.read(),_retry_after(r)
    except Exception as e: raise _fetch_error(e) from None

@dataclass
class _Site:
    limit:int              # Connections at once
    active:int=0           # Requests under way
    until:float=0          # No request may start before this time
    paused:float=0         # Time of the last refusal
    refusals:int=0         # Refusals in a row
    unanswered:int=0       # Unanswered requests in a row
    error:tuple=None       # If no more requests are sent to it, why: text and reason of a `FetchError`

class Fetcher:
    "Fetches images, from any thread: one session, limits per host, retries, and a deadline for each request"
    def __init__(self,
        workers:int, # Threads that fetch at once
        timeout:float, # Seconds to wait for the next bytes; one request may take three times as long
        ignore_robots=None # Rules of `_OPT_OUTS` to ignore where you have permission
    ):
        words = [ignore_robots] if isinstance(ignore_robots, str) else ignore_robots or []
        self.ignored,self.timeout,self.workers = [o.lower() for o in words],timeout,workers
        if unknown := set(self.ignored) - set(_OPT_OUTS):
            raise CatdogError(f'{min(unknown)!r} is not an opt-out that catdog knows: use {", ".join(_OPT_OUTS)}')
        self.session = _Session(workers=workers)
        self.session.headers.update({'Accept': 'image/*', 'Accept-Encoding': 'identity'})
        self.sites,self.changed,self.stopped = {},threading.Condition(),threading.Event()
    def close(self):
        "Start no further request, and close idle connections"
        self.stopped.set()
        self.session.close()
    def __enter__(self): return self
    def __exit__(self, *args): self.close()
    @contextmanager
    def _slot(self, site, end):
        "Hold one of the connections of `site`; raise `FetchError` if it was given up, or after `end`"
        with self.changed:
            while True:
                now = time.monotonic()
                if site.error: raise FetchError(*site.error)
                if now > end or self.stopped.is_set(): raise FetchError('there was no time left for it', 'timeout')
                # a server that has just asked for a pause gets one request at first
                if site.active < (1 if site.refusals else site.limit) and now >= site.until: break
                self.changed.wait(min(.5, max(.01, site.until - now)) if site.until > now else .5)
            site.active += 1
        try: yield now
        finally:
            with self.changed:
                site.active -= 1
                self.changed.notify_all()
    def _note(self, host, site, started, error):
        "Record how a request that `started` then ended; pause or give up `site` if it was refused or not answered"
        with self.changed:
            if getattr(error, 'refused', False):
                if started > site.paused: site.refusals,site.paused = site.refusals + 1,time.monotonic()
                seconds = 2**site.refusals if error.retry_after is None else error.retry_after
                site.until = max(site.until, time.monotonic() + seconds)
                if site.refusals >= _GIVE_UP or seconds > _MAX_WAIT:
                    site.error = f'{host} keeps refusing requests ({error}): try again later',error.reason
            elif error and error.reason in ('timeout', 'unreachable') and not getattr(error, 'answered', False):
                site.unanswered += 1
                if site.unanswered >= _GIVE_UP and not site.error:
                    site.error = f'{error}, like the {site.unanswered} requests before it',error.reason
            else: site.refusals = site.unanswered = 0
    def _request(self, url):
        "Return the body at `url`, or the URL that it redirects to; raise `FetchError` if it may not be used"
        end = time.monotonic() + 3*self.timeout
        try:
            with self.session.open(url, (min(self.timeout, 5), self.timeout)) as r:
                if r.is_redirect: return clean_url(self.session.get_redirect_target(r), url)
                text,seconds = f'its server answered {r.status_code}',_retry_after(r)
                if r.status_code in BUSY:
                    is_refused = r.status_code == 429 or r.status_code == 503 and seconds is not None
                    raise _TryAgain(text, 'busy', seconds, is_refused)
                if not r.ok: raise FetchError(text, 'not-found' if r.status_code in (404, 410) else 'refused')
                if rule := _opt_out(r.raw.headers, self.ignored):
                    raise FetchError(f'its server forbids this use ({rule})', 'refused')
                return _read_body(r, end, _MAX_BYTES)
        # requests, urllib3, http.client, ssl and idna raise a dozen types each for what a server may do
        except Exception as e: raise _fetch_error(e) from None
    def _follow(self, url, end):
        "Return the body at `url`, after redirects"
        for _ in range(_MAX_REDIRECTS + 1):
            host = _check_host(url)
            name,error = re.sub(r'.*\.wikimedia\.org$', 'wikimedia.org', host.rstrip('.')),None
            # https://wikitech.wikimedia.org/wiki/Robot_policy: two connections
            site = self.sites.setdefault(name, _Site(2 if name == 'wikimedia.org' else _PER_HOST))
            with self._slot(site, end) as started:
                try: res = self._request(url)
                except FetchError as e: error = e; raise
                finally: self._note(host, site, started, error)
            if not isinstance(res, str): return res
            url = res
        raise FetchError('too many redirects', 'refused')
    def fetch(self,
        url:str, # What to fetch, as a search engine gave it
        end:float=float('inf') # When it is too late to start a request, in `time.monotonic()`
    ): # A binary file at its beginning, to be closed
        "Return the body at `url`; raise `FetchError` if the request fails, `ImageError` if the body is too large"
        url,failures = clean_url(url),0
        while True:
            try: return self._follow(url, end)
            except _TryAgain as e:
                seconds = 0 if e.refused else retry_delay(e.retry_after, failures)   # `_slot` waits after a refusal
                failures += 1
                if failures >= (_MAX_REFUSALS if e.refused else TRIES) or seconds > _MAX_WAIT: raise
                if self.stopped.wait(seconds): raise
