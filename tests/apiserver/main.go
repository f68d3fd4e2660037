// A real Kubernetes API server for tests: etcd and kube-apiserver in one process.
//
// It says {"url": "https://..."} on one line of standard output as soon as it serves, then obeys lines on
// standard input, each answered by one line on standard output:
//
//	compact   etcd forgets all history up to now
//
// and ends when standard input is closed or on SIGTERM. Nothing is left but the data directory, which is
// the caller's.
package main

import (
	"bufio"
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"flag"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/server/v3/embed"
	"k8s.io/component-base/cli"
	"k8s.io/kubernetes/cmd/kube-apiserver/app"
)

const patience = 60 * time.Second

var (
	dataDir = flag.String("data-dir", "", "directory for etcd's data; must be there")
	address = flag.String("address", "127.0.0.1", "address to serve on")
	port    = flag.Int("port", 0, "port to serve on; 0: a free one")
	issuer  = flag.String("issuer", "", "issuer of service account tokens; default: this server's URL")
	cert    = flag.String("tls-cert", "", "certificate chain (PEM) of the server")
	key     = flag.String("tls-key", "", "its key (PEM)")
	ca      = flag.String("ca", "", "certificate (PEM) that signed it, to tell when the server is ready")
	users   = flag.String("token-file", "", "static bearer tokens: lines of token,user,uid,\"groups\"")
)

func main() {
	flag.Parse()
	etcd := startEtcd()
	if *port == 0 {
		*port = freePort()
	}
	server := "https://" + net.JoinHostPort(*address, strconv.Itoa(*port))
	if *issuer == "" {
		*issuer = server
	}
	signer := newSigner()
	command := app.NewAPIServerCommand()
	command.SetArgs([]string{
		"--etcd-servers=http://" + etcd.Clients[0].Addr().String(),
		"--bind-address=" + *address,
		"--advertise-address=" + *address,
		"--secure-port=" + strconv.Itoa(*port),
		"--tls-cert-file=" + *cert,
		"--tls-private-key-file=" + *key,
		"--cert-dir=" + filepath.Join(*dataDir, "certs"),
		"--token-auth-file=" + *users,
		"--service-account-issuer=" + *issuer,
		"--service-account-jwks-uri=" + *issuer + "/openid/v1/jwks",
		"--service-account-key-file=" + signer,
		"--service-account-signing-key-file=" + signer,
		"--service-cluster-ip-range=10.96.0.0/16",
		// As kubeadm and EKS have it.
		"--authorization-mode=Node,RBAC",
		"--enable-admission-plugins=NodeRestriction",
		"--allow-privileged=true",
		"--endpoint-reconciler-type=none",
	})
	go func() {
		waitUntilReady(server)
		say(map[string]string{"url": server})
		obey(etcd)
		os.Exit(0)
	}()
	code := cli.Run(command)
	etcd.Close()
	os.Exit(code)
}

func startEtcd() *embed.Etcd {
	config := embed.NewConfig()
	config.Dir = filepath.Join(*dataDir, "etcd")
	free := []url.URL{{Scheme: "http", Host: "127.0.0.1:0"}}
	config.ListenClientUrls, config.AdvertiseClientUrls = free, free
	config.ListenPeerUrls, config.AdvertisePeerUrls = free, free
	config.InitialCluster = config.InitialClusterFromName(config.Name)
	config.LogLevel = "error"
	// Nothing here outlives the process.
	config.UnsafeNoFsync = true
	etcd, err := embed.StartEtcd(config)
	check(err)
	select {
	case <-etcd.Server.ReadyNotify():
	case <-time.After(patience):
		check(fmt.Errorf("etcd is not ready after %s", patience))
	}
	return etcd
}

// newSigner makes the key that signs service account tokens.
func newSigner() string {
	private, err := rsa.GenerateKey(rand.Reader, 2048)
	check(err)
	block := pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(private)}
	file := filepath.Join(*dataDir, "service-account.key")
	check(os.WriteFile(file, pem.EncodeToMemory(&block), 0o600))
	return file
}

func freePort() int {
	listener, err := net.Listen("tcp", net.JoinHostPort(*address, "0"))
	check(err)
	defer listener.Close()
	return listener.Addr().(*net.TCPAddr).Port
}

func waitUntilReady(server string) {
	trusted, err := os.ReadFile(*ca)
	check(err)
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(trusted)
	client := http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}}}
	for start := time.Now(); time.Since(start) < patience; time.Sleep(50 * time.Millisecond) {
		response, err := client.Get(server + "/readyz")
		if err != nil {
			continue
		}
		response.Body.Close()
		if response.StatusCode == http.StatusOK {
			return
		}
	}
	check(fmt.Errorf("kube-apiserver is not ready after %s", patience))
}

// obey returns when standard input is closed.
func obey(etcd *embed.Etcd) {
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		if lines.Text() != "compact" {
			say(map[string]string{"error": "not a command: " + lines.Text()})
			continue
		}
		revision := etcd.Server.KV().Rev()
		_, err := etcd.Server.Compact(context.Background(), &pb.CompactionRequest{Revision: revision, Physical: true})
		if err != nil {
			say(map[string]string{"error": err.Error()})
			continue
		}
		say(map[string]int64{"compacted": revision})
	}
}

func say(line any) {
	check(json.NewEncoder(os.Stdout).Encode(line))
}

func check(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "apiserver:", err)
		os.Exit(1)
	}
}
