# Asks so often, so many milliseconds apart, and prints a line for each answer: `arn ARN`, `ok`, or `error WHY`.
def rounds
  $stdout.sync = true
  count, pause = ARGV.first(2).map(&:to_i)
  failed = false
  count.times do |number|
    sleep(pause / 1000.0) if number.positive?
    begin
      arn = yield
      failed = false
      puts(arn ? "arn #{arn}" : 'ok')
    rescue StandardError => e
      failed = true
      puts "error #{e.class}: #{e.message.split.join(' ')}"
    end
  end
  exit(!failed)
end
