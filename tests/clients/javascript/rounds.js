// Asks so often, so many milliseconds apart, and prints a line for each answer: `arn ARN`, `ok`, or `error WHY`.
module.exports = async (ask) => {
  const [count, pause] = process.argv.slice(2).map(Number)
  for (let number = 0; number < count; number++) {
    if (number > 0) await new Promise((resolve) => setTimeout(resolve, pause))
    try {
      const arn = await ask()
      console.log(arn ? `arn ${arn}` : 'ok')
      process.exitCode = 0
    } catch (error) {
      console.log(`error ${error.name}: ${error.message}`.replace(/\s+/g, ' '))
      process.exitCode = 1
    }
  }
}
